"""`python -m server bench ... --paced HZ`: whether a closed loop is answered in time, with and without other load."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from server.errors import InvalidInput, NotReady, brief
from server.inference.benchmark import positive
from server.inference.engine import Engine
from server.serving.batcher import Batcher
from server.serving.jobs import Priority
from server.serving.telemetry.metrics import Metrics

__all__ = ["add_arguments", "late_by", "pace", "run"]

Ask = Callable[[], object]

_BULK_IMAGES = 64  # in one request of the other load
_WARM_UP = 20  # turns before those that count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a closed loop, in place of the above; BUNDLE may be a server's address")
    group.add_argument("--paced", type=_number, metavar="HZ", help="turns a second")
    group.add_argument("--images", type=positive, default=1, metavar="B", help="in a turn (default: %(default)s)")
    group.add_argument("--minutes", type=_number, default=1.0, metavar="M", help="of turns (default: %(default)g)")
    group.add_argument("--within", type=_number, metavar="S", help="deadline of a turn in seconds (default: 1 / HZ)")
    group.add_argument(
        "--bulk", type=_count, default=2, metavar="N", help="clients that send bulk requests beside it (default: 2)"
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def pace(
    ask: Ask,
    *,
    hz: float,
    turns: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> np.ndarray:
    """Seconds from the moment that each turn is due to its answer.

    Turn i is due i / hz after the first, whenever the one before was answered: a late answer makes later ones late.
    """
    seconds = np.empty(turns)
    start = clock()
    for turn in range(turns):
        due = start + turn / hz
        if (wait := due - clock()) > 0:
            sleep(wait)
        ask()
        seconds[turn] = clock() - due
    return seconds


def late_by(seconds: np.ndarray, within: float) -> str:
    """A line of a table: turns, p50, p99 and worst in ms, missed deadlines."""
    p50, p99 = np.quantile(seconds, (0.5, 0.99), method="higher") * 1e3
    missed = int((seconds > within).sum())
    return f"{len(seconds):>9,}{p50:>10.2f}{p99:>10.2f}{seconds.max() * 1e3:>10.2f}{missed:>9,}"


def run(args: argparse.Namespace) -> int:
    """Prints the table; 1 if a deadline was missed."""
    within = args.within or 1 / args.paced
    turns = max(1, round(60 * args.minutes * args.paced))
    with contextlib.closing(_target(args)) as target:
        print(f"twin      {target.described}; {args.images} image{'s'[: args.images > 1]} a turn, all neurons")
        length = f"{turns / args.paced:.0f} s"
        print(f"pace      {args.paced:g} turns/s for {length}, each to be answered in {within * 1e3:.4g} ms")
        print(f"\n{'':<24}{'turns':>9}{'p50 ms':>10}{'p99 ms':>10}{'worst ms':>10}{'missed':>9}", flush=True)
        missed = 0
        for n_clients in (0, args.bulk)[: 1 + (args.bulk > 0)]:
            ask = target.opened(args.images, "interactive")
            for _ in range(_WARM_UP):
                ask()
            with _load(target, n_clients) as answered:
                seconds = pace(ask, hz=args.paced, turns=turns)
            missed += int((seconds > within).sum())
            name = f"beside {n_clients} bulk client{'s'[: n_clients > 1]}" if n_clients else "alone"
            rate = f"   {answered[0] / (turns / args.paced):.0f} bulk images/s" if n_clients else ""
            print(f"{name:<24}{late_by(seconds, within)}{rate}", flush=True)
    return 1 if missed else 0


@contextlib.contextmanager
def _load(target: _Target, n_clients: int) -> Iterator[list[int]]:
    """Clients that send one bulk request after another meanwhile; the images that were answered."""
    answered, is_over, problems = [0], threading.Event(), list[BaseException]()

    def client() -> None:
        try:
            ask = target.opened(_BULK_IMAGES, "bulk")
            while not is_over.is_set():
                ask()
                answered[0] += _BULK_IMAGES
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]


class _Target(ABC):
    """What is asked. `described` names it."""

    described: str

    @abstractmethod
    def opened(self, n_images: int, priority: Priority) -> Ask:
        """A function that sends one request and waits for its answer; to be called in one thread."""

    @abstractmethod
    def close(self) -> None: ...


def _target(args: argparse.Namespace) -> _Target:
    address = str(args.bundle)
    if address.startswith(("http://", "https://")):
        return _Server(address, args.mouse)
    if address.startswith(("grpc://", "unix:")):
        return _GRPCServer(address.removeprefix("grpc://"), args.mouse)
    return _InProcess(args)


def _images(n_images: int, shape: tuple[int, ...]) -> np.ndarray:
    """(B, C, H, W) grey levels, all different."""
    return np.random.default_rng(0).integers(0, 256, (n_images, *shape)).astype(np.float32)


class _InProcess(_Target):
    """A bundle in this process, behind a batcher: the server less its HTTP."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._engine = Engine.load(
            Path(args.bundle),
            provider=args.provider,
            precision=args.precision,
            threads=args.threads,
            max_batch=args.max_batch,
        )
        manifest = self._engine.manifest
        self._record = manifest.mice[_chosen(args.mouse, list(manifest.mice))]
        self.described = f"{manifest.name} in this process, {_mouse(self._record.mouse_id, self._record.n_neurons)}"
        self._batcher = Batcher(max_batch=args.max_batch, max_queue=2048, metrics=Metrics())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._batcher.start)

    def opened(self, n_images: int, priority: Priority) -> Ask:
        record = self._record
        behavior = np.array([[channel.median or 0.0 for channel in record.behavior]] * n_images)
        pupil_center = np.array([[channel.median or 0.0 for channel in record.pupil_center]] * n_images)
        image = _images(n_images, record.image_shape)
        stimulus = self._engine.check(record.mouse_id, image, behavior, pupil_center)

        def ask() -> object:
            work = self._batcher.compute(self._engine, [stimulus], priority=priority)
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()

        return ask

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._batcher.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Server(_Target):
    """A running server, over HTTP; the key is V1T_API_KEY's."""

    def __init__(self, url: str, mouse: str | None) -> None:
        self._url = urlsplit(url)
        self._connections: list[http.client.HTTPConnection] = []
        key = os.environ.get("V1T_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        mice = {one["mouse"]: one for one in json.loads(self._asked("GET", "/mice"))["mice"]}
        self._mouse = mice[_chosen(mouse, list(mice))]
        name, n_neurons = self._mouse["model"], self._mouse["n_neurons"]
        self.described = f"{name} at {url}, {_mouse(self._mouse['mouse'], n_neurons)}"

    def _connected(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        self._connections.append(kind(self._url.hostname or "", self._url.port, timeout=120))
        return self._connections[-1]

    def _asked(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> bytes:
        connection = connection or self._connected()
        try:
            connection.request(method, f"{self._url.path.rstrip('/')}{path}", body, self._headers | (headers or {}))
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            connection.close()
            raise NotReady(
                "the server cannot be reached", got=brief(str(error)), hint=f"Is one running at {self._url.geturl()}?"
            ) from None
        if response.status != 200:
            said = content.decode(errors="replace")[:300]
            raise NotReady("the server refused a turn", got=f"{response.status}: {said}")
        return content

    def opened(self, n_images: int, priority: Priority) -> Ask:
        image = _images(n_images, tuple(self._mouse["image_shape"]))
        tensor = {
            "name": "image",
            "datatype": "FP32",
            "shape": image.shape,
            "parameters": {"binary_data_size": image.nbytes},
        }
        outputs = [{"name": "responses", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        body = head + image.tobytes()
        headers = {"Inference-Header-Content-Length": str(len(head)), "V1T-Priority": priority}
        path = f"/v2/models/{self._mouse['model']}.{self._mouse['mouse']}/infer"
        connection = self._connected()
        return lambda: self._asked("POST", path, body, headers, connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class _GRPCServer(_Target):
    """A running server, over gRPC; the key is V1T_API_KEY's."""

    def __init__(self, address: str, mouse: str | None) -> None:
        from server.grpc_api.addresses import check_installed

        check_installed()
        import grpc

        from server.grpc_api.messages import SERVICE, message

        self._message, self._service, self._error = message, SERVICE, grpc.RpcError
        key = os.environ.get("V1T_API_KEY")
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
        models = [one.name for one in self._call("RepositoryIndex", message("RepositoryIndexRequest")()).models]
        of_mice = {name.rpartition(".")[2]: name for name in models}
        self._model = of_mice[_chosen(mouse, list(of_mice))]
        metadata = self._call("ModelMetadata", message("ModelMetadataRequest")(name=self._model))
        self._shape = tuple(metadata.inputs[0].shape[1:])
        self.described = f"{self._model} over gRPC at {address}"

    def _call(self, method: str, request: Any, priority: Priority = "interactive") -> Any:
        metadata = (*self._metadata, ("v1t-priority", priority))
        try:
            content = self._channel.unary_unary(f"/{self._service}/{method}")(
                request.SerializeToString(), metadata=metadata, timeout=120
            )
        except self._error as error:
            raise NotReady("the server refused a turn", got=f"{error.code().name}: {error.details()}") from None
        return self._message(f"{method}Response").FromString(content)

    def opened(self, n_images: int, priority: Priority) -> Ask:
        image = _images(n_images, self._shape)
        request = self._message("ModelInferRequest")(model_name=self._model, raw_input_contents=[image.tobytes()])
        request.inputs.add(name="image", datatype="FP32", shape=image.shape)
        request.outputs.add(name="responses")
        return lambda: self._call("ModelInfer", request, priority)

    def close(self) -> None:
        self._channel.close()


def _chosen(mouse: str | None, mice: list[str]) -> str:
    if mouse is None:
        return mice[0]
    if mouse not in mice:
        raise InvalidInput("there is no such mouse", got=brief(mouse), expected=" or ".join(mice))
    return mouse


def _mouse(mouse_id: str, n_neurons: int) -> str:
    return f"mouse {mouse_id}, {n_neurons} neuron{'s'[: n_neurons > 1]}"
