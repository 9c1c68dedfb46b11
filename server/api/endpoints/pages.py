"""GET / and /metrics: the page about the mice that are served, and Prometheus metrics."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.bundle.manifest import MouseRecord
from server.errors import TwinError
from server.serving.context import Context
from server.serving.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from server.serving.repository import Bundle

__all__ = ["index", "metrics"]

_STANDARDIZED = (
    "A mouse whose inputs are standardised takes no pictures: its twin was imported without the recording, so that the "
    "mean and the std of the training images are not known. Send it arrays in standard deviations from the mean."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Digital twins of mouse visual cortex</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #ddd }}
pre {{ background: #f4f4f4; padding: 1rem; overflow-x: auto }}
</style>
</head>
<body>
<h1>Digital twins of mouse visual cortex</h1>
{content}
<p><a href="{links}mice">/mice</a> &middot; <a href="{links}docs.json">/docs.json</a> (OpenAPI) &middot;
<a href="{links}metrics">/metrics</a> &middot; <a href="{links}readyz">/readyz</a></p>
</body>
</html>
"""


async def metrics(request: Request, context: Context) -> Response:
    """Prometheus metrics."""
    return Response(context.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def index(request: Request, context: Context) -> Response:
    """The page at /. It loads nothing from other hosts."""
    public_url = context.settings.public_url
    status = 200
    try:
        content = _content(public_url or str(request.base_url).rstrip("/"), list(context.repository.records()))
    except TwinError as error:
        status, content = error.status, f"<p>{escape(str(error))}</p>"
    # Links without a public URL are relative, so that they work below any prefix.
    html = _PAGE.format(content=content, links=escape(f"{public_url}/" if public_url else ""))
    return HTMLResponse(html, status, {"Content-Security-Policy": POLICY})


def _content(url: str, records: Sequence[tuple[Bundle, MouseRecord]]) -> str:
    """What the page says about the mice.

    Args:
        url: of this server, for the examples.
    """
    mice = [mouse for _, mouse in records]
    rows = "".join(
        f"<tr><td>{escape(mouse.mouse_id)}</td><td>{'simulated' if bundle.manifest.simulated else 'recorded'}</td>"
        f"<td>{mouse.n_neurons}</td><td>{' &times; '.join(map(str, mouse.image_shape))}</td>"
        f"<td>{escape(', '.join(mouse.uses))}</td>"
        f"<td>{'standardised' if mouse.standardized_inputs else 'as recorded'}</td></tr>"
        for bundle, mouse in records
    )
    notices = dict.fromkeys(bundle.manifest.notice for bundle, _ in records if bundle.manifest.notice)
    first = next((mouse for mouse in mice if not mouse.standardized_inputs), mice[0])
    said = "".join(f"<p>{escape(notice)}</p>" for notice in notices)
    if any(mouse.standardized_inputs for mouse in mice):
        said += f"<p>{escape(_STANDARDIZED)}</p>"
    pictures = (
        ""
        if first.standardized_inputs
        else f"""
<p>Or a picture of your own:</p>
<pre>{escape(picture_example(url, first))}</pre>"""
    )
    return f"""{said}<table>
<tr><th>mouse</th><th>animal</th><th>neurons</th><th>image (C &times; H &times; W)</th><th>uses</th><th>inputs</th></tr>
{rows}
</table>
<p>Ask {escape(first.mouse_id)} what its neurons do, shown a coarse checkerboard:</p>
<pre>{escape(example(url, first))}</pre>{pictures}"""


def example(url: str, mouse: MouseRecord) -> str:
    """A curl line that works as it stands: a 2 x 2 checkerboard, scaled by the server."""
    board = [[-1.0, 1.0], [1.0, -1.0]] if mouse.standardized_inputs else [[0, 255], [255, 0]]
    question: dict[str, Any] = {
        "mouse": mouse.mouse_id,
        "image": [board] * mouse.image_shape[0],
        "resize": "fill",
        **_required(mouse),
    }
    header, body = "-H 'Content-Type: application/json'", shlex.quote(json.dumps(question))
    return f"curl -s {shlex.quote(f'{url}/predict')} {header} -d {body}"


def picture_example(url: str, mouse: MouseRecord) -> str:
    """A curl line that sends a file."""
    file = "picture.png" if mouse.image_shape[0] == 1 else "image.npy"
    fields = {"mouse": mouse.mouse_id, **{name: json.dumps(value) for name, value in _required(mouse).items()}}
    parts = [f"-F {shlex.quote(f'{name}={value}')}" for name, value in fields.items()]
    return " ".join(["curl", "-s", shlex.quote(f"{url}/predict"), *parts, f"-F image=@{file}", "-F resize=fit"])


def _required(mouse: MouseRecord) -> dict[str, Any]:
    """Values for the inputs that this mouse uses and has no mean for: zero is the mean of standardised ones."""
    values: dict[str, Any] = {}
    if "behavior" in mouse.uses:
        values.update({channel.name: 0.0 for channel in mouse.behavior if channel.mean is None})
    if "pupil_center" in mouse.uses and any(channel.mean is None for channel in mouse.pupil_center):
        values["pupil_center"] = [0.0, 0.0]
    return values
