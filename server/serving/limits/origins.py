"""Which hosts and web pages a server without keys answers.

A page that a browser shows can send requests to this machine. Without keys, its requests would be answered like any
other: the server therefore refuses those of other origins, and those for a host name that is not its own, which a page
can have its browser resolve to this machine (DNS rebinding). Programs other than browsers send no Origin, and are not
affected. A server with keys needs none of this: a page does not know them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from server.errors import Forbidden, brief
from server.settings import PREFIX, Settings

__all__ = ["Origins"]

_PORTS = {"http": 80, "https": 443}


class Origins:
    """The hosts and origins of one service."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(settings.public_url or "")
        names = (*settings.hosts, public.hostname or "localhost", socket.gethostname())
        self._hosts = {name.lower().rstrip(".") for name in names}
        self._any_host = "*" in settings.hosts
        self._origins = {origin.lower() for origin in settings.cors_origins}
        if settings.public_url:
            self._origins.add(f"{public.scheme}://{public.netloc}".lower())
        self._any_origin = "*" in settings.cors_origins
        self._known: set[str] = set()  # Host headers that were accepted; bounded

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises Forbidden if a page of another origin sends the request, or it is for another host."""
        host = headers.get("host", "")
        if host not in self._known:
            self._check_host(host)
        origin = headers.get("origin")
        if origin is not None:
            self._check_origin(origin, host)
        elif headers.get("sec-fetch-site") == "cross-site" and not _is_visit(method, headers):
            raise _foreign("a page of another site")

    def _check_host(self, host: str) -> None:
        name = _name(host)
        if not (self._any_host or not host or _is_address(name) or name in self._hosts or _is_localhost(name)):
            raise Forbidden(
                "the request is for another host",
                got=brief(host),
                expected="an address of this machine, localhost, or its name",
                hint=f"The server's operator can allow more names with {PREFIX}HOSTS={name or 'NAME'}.",
            )
        if len(self._known) < 64:
            self._known.add(host)

    def _check_origin(self, origin: str, host: str) -> None:
        if self._any_origin or origin.lower() in self._origins:
            return
        parts = urlsplit(origin)
        try:
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            port = None
        if parts.hostname and _same_host(parts.hostname, port, host, _PORTS.get(parts.scheme)):
            return
        raise _foreign(brief(origin))


def _same_host(name: str, port: int | None, host: str, default_port: int | None) -> bool:
    """Whether an origin is that of a Host header."""
    parts = urlsplit(f"//{host}")
    try:
        return (name, port) == (parts.hostname, parts.port or default_port)
    except ValueError:
        return False


def _is_visit(method: str, headers: Mapping[str, str]) -> bool:
    """Whether the user follows a link to this server: the page that links to it does not see the reply."""
    return method == "GET" and headers.get("sec-fetch-mode") == "navigate"


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True  # nobody else can have a browser take an address for a name


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _foreign(got: str) -> Forbidden:
    return Forbidden(
        "a web page of another origin sends the request",
        got=got,
        expected="no Origin, or this server's own",
        hint=f"The server's operator can allow it by name: {PREFIX}CORS_ORIGINS=http://localhost:8888",
    )
