"""Attacks on a server: what clients without a key can send.

Each runs in a process of its own, `python -m reliability.attacks`. They are written with sockets, from the HTTP
contract, and ask about the mice of the tiny bundle.
"""

from __future__ import annotations

import io
import json
import random
import resource
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["ATTACKS", "Attack"]

MB = 1024**2
HEAD = "Host: localhost\r\n"
JSON, FORM = "application/json", "multipart/form-data; boundary=xyz"

Statuses = Counter[str]


@dataclass(frozen=True)
class Attack:
    """One kind of attack.

    Attributes:
        clients: that attack at the same time.
        run: what one of them does, once; gets the port, and returns the status of the reply, or what came instead.
    """

    clients: int
    run: Callable[[int], str]


def _connect(port: int, **options: int) -> socket.socket:
    connection = socket.socket()
    connection.settimeout(20)
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.connect(("127.0.0.1", port))
    return connection


def _send(port: int, parts: Iterable[bytes], pause: float = 0.0) -> str:
    """The status of the reply to these bytes."""
    try:
        with _connect(port) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            except OSError:
                pass  # refused: the reply may be there
            return _status(connection)
    except OSError as error:
        return type(error).__name__


def _status(connection: socket.socket) -> str:
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            return "closed"
        received += part
    head = received.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
    status = head.split()[1]
    return status if status not in ("429", "503") or "retry-after" in head else f"{status} without Retry-After"


def _post(port: int, path: str, content_type: str, body: bytes, headers: str = "") -> str:
    head = (
        f"POST {path} HTTP/1.1\r\n{headers or HEAD}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return _send(port, [head.encode(), body])


def _form(files: Iterable[bytes], **fields: str) -> bytes:
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in fields.items()
    ]
    head = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return b"".join([*parts, *(head + file + b"\r\n" for file in files), b"--xyz--\r\n"])


def _one_bit_png(side: int = 4096) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _jpeg_of_scans(scans: int = 100, side: int = 2048) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), 128, np.uint8)).save(stream, "JPEG", progressive=True)
    jpeg = stream.getvalue()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * (scans - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# The attacks. Bodies are made once, when their attack begins.


def _header_lines(port: int) -> str:
    return _send(port, [b"GET /mice HTTP/1.1\r\n", *[b"a: b\r\n" * 150_000] * 100])


def _header_value(port: int) -> str:
    return _send(port, [b"GET /mice HTTP/1.1\r\na: ", *[b"b" * MB] * 235])


def _dripping_head(port: int) -> str:
    return _send(port, [b"GET /mice HTTP/1.1\r\n", *[b"a: b\r\n"] * 18], pause=1)


def _dripping_body(port: int) -> str:
    head = f"POST /predict HTTP/1.1\r\n{HEAD}Content-Type: {JSON}\r\nContent-Length: {60 * MB}\r\n\r\n"
    return _send(port, [head.encode(), *[b" "] * 18], pause=1)


def _posted(path: str, content_type: str, make: Callable[[], bytes], headers: str = "") -> Callable[[int], str]:
    lock, bodies = threading.Lock(), []

    def run(port: int) -> str:
        with lock:
            if not bodies:
                bodies.append(make())
        return _post(port, path, content_type, bodies[0], headers)

    return run


def _idle(port: int) -> str:
    with _connect(port) as connection:
        connection.settimeout(60)
        return "closed" if connection.recv(1) == b"" else "answered"


def _unread(port: int) -> str:
    image = _npy(np.zeros((512, 1, 8, 12), np.uint8))
    body = _form([image], mouse="A", spread="true")
    head = f"POST /predict HTTP/1.1\r\n{HEAD}Content-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    with _connect(port, SO_RCVBUF=2048) as connection:
        connection.sendall((head.encode() + body) * 8)
        time.sleep(25)
    return "unread"


def _ask_for_mice(port: int) -> str:
    with _connect(port) as connection:
        for _ in range(2000):
            connection.sendall(f"GET /mice HTTP/1.1\r\n{HEAD}\r\n".encode())
            status = _status(connection)
    return status


def _numbers() -> bytes:
    return (
        b'{"inputs": [{"name": "image", "shape": [1, 1, 8, 12], "datatype": "FP32", "data": ['
        + b"0," * (31 * MB)
        + b"0]}]}"
    )


_QUESTION = json.dumps({"mouse": "A", "image": np.zeros((8, 12)).tolist()}).encode()
_INFER = "/v2/models/tiny.A/infer"

ATTACKS: Mapping[str, Attack] = {
    "100 MB of header lines": Attack(4, _header_lines),
    "a header of 235 MB": Attack(2, _header_value),
    "heads that never end": Attack(200, _dripping_head),
    "JSON of [[],[],...], 60 MB": Attack(50, _posted("/predict", JSON, lambda: b"[" + b"[]," * (20 * MB) + b"[]]")),
    "JSON of numbers on /v2, 62 MB": Attack(50, _posted(_INFER, JSON, _numbers)),
    "forms of .npy, 60 MB": Attack(
        50, _posted("/predict", FORM, lambda: _form([_npy(np.zeros((15 * MB,), np.float32))], mouse="A"))
    ),
    "bodies of 60 MB that never end": Attack(50, _dripping_body),
    "512 PNGs of 4096 x 4096": Attack(
        8, _posted("/predict", FORM, lambda: _form([_one_bit_png()] * 512, mouse="A", resize="fit"))
    ),
    "512 JPEGs of 100 scans": Attack(
        8, _posted("/predict", FORM, lambda: _form([_jpeg_of_scans()] * 512, mouse="A", resize="fit"))
    ),
    "1,100 idle connections": Attack(1100, _idle),
    "replies that are never read": Attack(150, _unread),
    "a form from a page elsewhere": Attack(
        4,
        _posted(
            "/predict",
            FORM,
            lambda: _form([_npy(np.zeros((1, 8, 12), np.float32))], mouse="A"),
            f"{HEAD}Origin: http://elsewhere.example\r\n",
        ),
    ),
    "a name rebound to this machine": Attack(4, _posted("/predict", JSON, lambda: _QUESTION, "Host: x.example\r\n")),
    "as many requests as possible": Attack(8, _ask_for_mice),
}


def main(name: str, port: int, seconds: float, clients: int) -> None:
    """Attacks for a while, and prints the statuses of all replies as JSON."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    attack = ATTACKS[name]
    statuses: Statuses = Counter()
    end = time.monotonic() + seconds

    def client() -> None:
        time.sleep(random.random() * min(1, seconds / 4))
        while time.monotonic() < end:
            try:
                status = attack.run(port)
            except OSError as error:
                status = type(error).__name__
            statuses[status] += 1
            time.sleep(0.05)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients or attack.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end + 1 - time.monotonic()))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
