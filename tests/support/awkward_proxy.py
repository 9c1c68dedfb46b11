"""A proxy that is as awkward as a network: it delays, refuses, drops connections, and serves below a prefix."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

__all__ = ["AwkwardProxy", "proxying"]

_DROPPED = {
    "connection",
    "transfer-encoding",
    "content-encoding",
    "content-length",
    "keep-alive",
    "date",
    "server",
}


@dataclass
class AwkwardProxy:
    """What the proxy does now.

    Attributes:
        delay: seconds before each POST is passed on.
        refuse: POSTs that are yet to be refused with this status.
        away: whether connections are closed without a reply.
        asked, dropped: POSTs that came, and those whose client did not wait for the reply.
    """

    target: str
    url: str
    prefix: str = ""
    delay: float = 0.0
    refuse: tuple[int, int] = (429, 0)
    away: bool = False
    asked: int = 0
    dropped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def proxying(target: str, port: int, prefix: str = "") -> Iterator[AwkwardProxy]:
    """A proxy in front of a server; it does not remove the prefix."""
    proxy = AwkwardProxy(target, f"http://127.0.0.1:{port}{prefix}", prefix)
    with httpx.Client(timeout=60) as client:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(proxy, client))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(proxy: AwkwardProxy, client: httpx.Client) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._pass_on("GET")

        def do_POST(self) -> None:
            self._pass_on("POST")

        def _pass_on(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if proxy.away:
                self.close_connection = True
                return
            if method == "POST":
                with proxy.lock:
                    proxy.asked += 1
                    status, left = proxy.refuse
                    proxy.refuse = (status, max(left - 1, 0))
                if left:
                    content = b'{"error": {"code": "busy", "message": "the queue is full", "hint": null}}'
                    self._reply(status, {"Content-Type": "application/json", "Retry-After": "1"}, content)
                    return
                time.sleep(proxy.delay)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _DROPPED}
            got = client.request(method, proxy.target + self.path, content=body, headers=headers)
            kept = {name: value for name, value in got.headers.items() if name.lower() not in _DROPPED}
            self._reply(got.status_code, kept, got.content)

        def _reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                with proxy.lock:
                    proxy.dropped += 1

    return Handler
