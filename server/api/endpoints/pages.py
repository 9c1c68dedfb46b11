"""GET /, /docs, /explorer/... and /metrics: the explorer's files, and Prometheus metrics."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from server.errors import NotFound, brief
from server.serving.context import Context
from server.serving.telemetry.metrics import CONTENT_TYPE

__all__ = ["POLICY", "docs_page", "explorer_file", "index", "metrics"]

FOLDER = Path(__file__).resolve().parents[2] / "explorer"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_COMPRESSED = (".html", ".css", ".js", ".svg")

# Scripts, styles and requests are this server's own; blob: holds pictures that were dropped, and figures.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)


async def metrics(request: Request, context: Context) -> Response:
    """Prometheus metrics."""
    return Response(context.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def index(request: Request, context: Context) -> Response:
    """The explorer."""
    return _reply(request, _page("index.html", context))


async def docs_page(request: Request, context: Context) -> Response:
    """The API, to read and to try."""
    return _reply(request, _page("docs.html", context))


async def explorer_file(request: Request, context: Context) -> Response:
    """A file of the explorer."""
    path = request.path_params["path"]
    if path not in _files():
        raise NotFound("the explorer has no such file", got=brief(path), hint="See /.")
    return _reply(request, _file(path))


@dataclass(frozen=True)
class _Static:
    media_type: str
    content: bytes
    compressed: bytes | None
    etag: str


@lru_cache
def _files() -> frozenset[str]:
    """What is served: no path from a request reaches the file system."""
    files = (path for path in FOLDER.rglob("*") if path.is_file() and path.suffix in _TYPES)
    return frozenset(path.relative_to(FOLDER).as_posix() for path in files)


@lru_cache
def _file(path: str, base: str = "") -> _Static:
    """A file in memory, once for all requests.

    Args:
        base: path prefix of the public URL, where there is one: a page that is opened without its last slash would
            otherwise look for its files one level too high.
    """
    content = (FOLDER / path).read_bytes()
    if base:
        content = content.replace(b"<head>", f'<head>\n    <base href="{escape(base)}" />'.encode(), 1)
    suffix = Path(path).suffix
    return _Static(
        media_type=_TYPES[suffix],
        content=content,
        compressed=gzip.compress(content, mtime=0) if suffix in _COMPRESSED else None,
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )


def _page(name: str, context: Context) -> _Static:
    prefix = urlsplit(context.settings.public_url or "").path
    return _file(name, f"{prefix}/" if prefix else "")


def _reply(request: Request, file: _Static) -> Response:
    headers = {
        "Cache-Control": "no-cache",  # browsers ask whether their copy is the current one
        "ETag": file.etag,
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": POLICY,
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = file.compressed, "gzip"
    return Response(content, headers=headers, media_type=file.media_type)
