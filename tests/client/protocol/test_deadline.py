"""The client's timeout is for the whole call, whatever a server does; and no reply is larger than was asked for."""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from v1t_client import AsyncClient, Client, ReplyInvalid, TimedOut, V1TError
from v1t_client.insilico.experiments import receptive_field_stream

Answer = Callable[[socket.socket], None]
IMAGE = np.zeros((4, 6), np.float32)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-npy\r\n"


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A server that reads a request's first bytes, and then does what it likes; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection)

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.close()


def receive(connection: socket.socket) -> None:
    """Reads the request: a connection that is closed with unread bytes is reset, and loses the reply."""
    connection.settimeout(0.1)
    with suppress(TimeoutError):
        while connection.recv(65536):
            pass
    connection.settimeout(None)


def dripped_body(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b"\0")
        time.sleep(0.05)


def dripped_headers(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(HEAD)
    for _ in range(1000):
        connection.sendall(b"X: 1\r\n")
        time.sleep(0.05)


def endless_continue(connection: socket.socket) -> None:
    receive(connection)
    for _ in range(1000):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


def silence(connection: socket.socket) -> None:
    time.sleep(20)


def ask(url: str, blocking: bool, **options: float) -> None:
    async def ask_async() -> None:
        async with AsyncClient(url, **options) as client:
            await client.predict("A", IMAGE, neuron_ids=[1, 2])

    if not blocking:
        asyncio.run(ask_async())
        return
    with Client(url, **options) as client:
        client.predict("A", IMAGE, neuron_ids=[1, 2])


@pytest.mark.parametrize("answer", [dripped_body, dripped_headers, endless_continue, silence])
@pytest.mark.parametrize("blocking", [True, False])
def test_the_timeout_holds(answer: Answer, blocking: bool) -> None:
    with server(answer) as url:
        start = time.monotonic()
        with pytest.raises(TimedOut):
            ask(url, blocking, timeout=1, retries=3)
        assert time.monotonic() - start < 2


def test_the_timeout_holds_while_a_server_hardly_reads() -> None:
    def read_slowly(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        while connection.recv(500):
            time.sleep(0.05)

    with server(read_slowly) as url, Client(url, timeout=1) as client:
        start = time.monotonic()
        with pytest.raises(TimedOut):
            client.predict("A", np.zeros((50, 1, 256, 256), np.float32))
        assert time.monotonic() - start < 2


def endless(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(HEAD + b"\r\n")
    for _ in itertools.count():
        connection.sendall(bytes(1024**2))


@functools.cache
def zeros() -> bytes:
    """300 MiB, compressed to a thousandth."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1024**2)) for _ in range(300)) + packer.flush()


def compressed_zeros(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n")
    connection.sendall(zeros())


@pytest.mark.parametrize("answer", [endless, compressed_zeros])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_reply_larger_than_what_was_asked_for_is_not_read(answer: Answer, blocking: bool) -> None:
    zeros()
    tracemalloc.start()
    with server(answer) as url, pytest.raises(ReplyInvalid, match="larger than any answer"):
        ask(url, blocking, timeout=20, retries=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def dripped_events(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-v1t-stream\r\n\r\n")
    connection.sendall(b'{"event": "progress", "done": 1}\n')
    for _ in range(1000):
        connection.sendall(b"{")
        time.sleep(0.05)


def an_endless_line(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-v1t-stream\r\n\r\n")
    for _ in itertools.count():
        connection.sendall(b" " * 1024**2)


def a_huge_body(connection: socket.socket) -> None:
    receive(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-v1t-stream\r\n\r\n")
    connection.sendall(b'{"event": "part", "bytes": 1000000000000}\n')
    time.sleep(5)


@pytest.mark.parametrize(
    ("answer", "error"), [(dripped_events, V1TError), (an_endless_line, ReplyInvalid), (a_huge_body, ReplyInvalid)]
)
def test_a_stream_is_bounded_in_time_and_size(
    answer: Answer, error: type[V1TError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receptive_field_stream, "_ATTEMPTS", 1)
    with server(answer) as url, Client(url, timeout=1) as client:
        start = time.monotonic()
        with pytest.raises(error):
            receptive_field_stream.server_sums(client, {"mouse": "A", "seed": 0})
        assert time.monotonic() - start < 3


def test_retries_and_their_requests_share_one_timeout() -> None:
    def busy(connection: socket.socket) -> None:
        receive(connection)
        time.sleep(0.4)
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with server(busy) as url, Client(url, timeout=1.2, retries=100) as client:
        start = time.monotonic()
        with pytest.raises(V1TError):
            client.predict("A", IMAGE)
        assert time.monotonic() - start < 1.8
