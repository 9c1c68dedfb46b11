"""The overhead of the service: compared with other servers of a tiny model, and with the engine at the published size.

    pip install litserve                        # without it, its rows are left out
    python tests/perf/bench_service.py [--rounds 5] [--published path/to/bundle] [--only tiny]

The tiny model, with 8,000 neurons and with 7, makes the overhead visible. The table gives requests/s of one image each,
with 32 connections and one thread per engine; the servers are measured in turn, in several rounds. The published
configuration has random weights. A burst of 48 requests is compared with as many images in `Engine.predict`, and so is
a single request, and one right after the burst with an image right after the loop. Prints medians and ratios. Nothing
is asserted. The export takes a minute; --published keeps the bundle. Do not use the machine for anything else while
this runs.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]

from support.live_server import BENTOML, free_port, serving  # noqa: E402
from support.tiny_bundle import write_tiny_bundle  # noqa: E402

from server.bundle.manifest import MANIFEST  # noqa: E402
from server.inference.engine import Engine  # noqa: E402

CONNECTIONS = 32
LONE = 9  # single requests before each burst
SHAPE, WIDTH = (1, 8, 12), 8 * 12 + 3 + 2  # mouse A of the tiny bundle; image, behaviour and pupil centre in one row

# The other servers: each takes rows (B, WIDTH) and returns responses (B, N) of the same engine.
MODEL = """
import os, pathlib, sys
sys.path.insert(0, os.environ["BENCH_ROOT"])
import numpy as np
from server.inference.engine import Engine

class Model:
    def __init__(self):
        self.engine = Engine.load(pathlib.Path(os.environ["BENCH_BUNDLE"]), provider="cpu", threads=1, max_batch=8)
        self.engine.warm_up()
    def __call__(self, rows):
        rows = np.asarray(rows, np.float32)
        return self.engine.predict("A", rows[:, :96].reshape(-1, 1, 8, 12), rows[:, 96:99], rows[:, 99:])
"""
BENTOML_SERVICE = """
import bentoml, numpy as np
from model import Model

@bentoml.service(workers=1, http={"host": "127.0.0.1"})
class Plain:
    def __init__(self):
        self.model = Model()
    @bentoml.api(batchable=True, max_batch_size=8)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model(rows)
"""
LITSERVE_SERVER = """
import sys
from typing import Annotated
import litserve, numpy as np
from fastapi import Depends, Request, Response
from model import Model

async def content(request: Request) -> bytes:
    return await request.body()

class API(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()
    def decode_request(self, request: Annotated[bytes, Depends(content)]):
        return np.frombuffer(request, np.float32)
    def batch(self, inputs):
        return np.stack(inputs)
    def predict(self, rows):
        return self.model(rows)
    def unbatch(self, output):
        return list(output)
    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")

if __name__ == "__main__":
    api = API(max_batch_size=8, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue="fast" in sys.argv)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
"""


@dataclass(frozen=True)
class Contender:
    """A server, the request that it gets, and how its reply is read."""

    name: str
    pid: int
    port: int
    request: bytes
    read: Callable[[bytes], np.ndarray]


def http_request(path: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Refused(RuntimeError):
    """The server answered with another status than 200."""

    def __init__(self, head: str) -> None:
        super().__init__(head)
        self.status = int(head.split(" ", 2)[1])


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """The body of the reply. The client does as little as possible, so that the server is measured.

    Raises:
        Refused: the status is not 200; the body has not been read.
    """
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise Refused(head.decode("latin-1"))
    length = head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0]
    return await reader.readexactly(int(length))


async def rate(contender: Contender, seconds: float) -> tuple[float, float]:
    """Requests per second over all connections, and the CPU time per request of the server's processes, in ms."""
    count, end = 0, time.perf_counter() + seconds

    async def connection() -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", contender.port)
        while time.perf_counter() < end:
            await ask(reader, writer, contender.request)
            count += 1
        writer.close()
        await writer.wait_closed()

    start, cpu = time.perf_counter(), cpu_seconds(contender.pid)
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - start), 1e3 * (cpu_seconds(contender.pid) - cpu) / count


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of all processes that it started."""
    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in [parent, *parent.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


async def once(contender: Contender) -> np.ndarray:
    reader, writer = await asyncio.open_connection("127.0.0.1", contender.port)
    try:
        return contender.read(await ask(reader, writer, contender.request))
    finally:
        writer.close()


@contextmanager
def running(command: list[str], folder: Path, bundle: Path, port: int) -> Iterator[int]:
    """Starts another server and yields its process id; stops all its processes at the end."""
    environment = {
        **os.environ,
        "BENCH_ROOT": str(ROOT),
        "BENCH_BUNDLE": str(bundle),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / f"{port}.log").read_text()) from None
                time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def tiny(rounds: int, seconds: float, neurons: int) -> None:
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        twin = write_tiny_bundle(folder / "tiny", mice=("A",), n_neurons=neurons)
        for name, text in (("model", MODEL), ("plain", BENTOML_SERVICE), ("lit", LITSERVE_SERVER)):
            (folder / f"{name}.py").write_text(text)
        arrays = twin.draw("A", np.random.default_rng(0))
        ours = stack.enter_context(serving(twin.folder, folder, V1T_THREADS="1"))
        ours.wait_for("/readyz", 200)
        contenders = our_contenders(ours.process.pid, int(ours.url.rpartition(":")[2]), arrays, neurons)
        row = np.concatenate([array.reshape(1, -1) for array in arrays], axis=1)  # (1, WIDTH)
        assert row.shape == (1, WIDTH)

        def start(*command: str, port: int) -> int:
            return stack.enter_context(running([*command], folder, twin.folder, port))

        port = free_port()
        as_json = json.dumps({"rows": row.tolist()}).encode()
        plain = Contender(
            "BentoML, batchable, JSON",
            start(*BENTOML, "serve", "plain:Plain", "--port", str(port), port=port),
            port,
            http_request("/predict", as_json, Content_Type="application/json"),
            lambda body: np.array(json.loads(body)),
        )
        contenders.append(plain)
        if importlib.util.find_spec("litserve"):
            for queue in ("default", "fast"):
                port = free_port()
                contenders.append(
                    Contender(
                        f"LitServe, {queue} queue, binary",
                        start(sys.executable, "lit.py", str(port), queue, port=port),
                        port,
                        http_request("/predict", row.tobytes(), Content_Type="application/octet-stream"),
                        lambda body: np.frombuffer(body, np.float32),
                    )
                )
        expected = twin.answer("A", *arrays)
        for contender in contenders:
            wait_until_right(contender, expected)
        rates: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
        for _ in range(rounds):
            for contender in contenders:
                rates[contender.name].append(asyncio.run(rate(contender, seconds)))
    medians = {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in rates.items()}
    report_tiny(medians, plain.name, rounds, neurons)


def our_contenders(
    pid: int, port: int, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], n_neurons: int
) -> list[Contender]:
    names = ("image", "behavior", "pupil_center")
    tensors = [
        {"name": name, "datatype": "FP32", "shape": a.shape, "parameters": {"binary_data_size": a.nbytes}}
        for name, a in zip(names, arrays, strict=True)
    ]
    head = json.dumps({"inputs": tensors, "outputs": [{"name": "responses", "parameters": {"binary_data": True}}]})
    image, behavior, pupil_center = arrays
    fields = {"mouse": "A", "image": image.tolist(), "pupil_center": pupil_center.tolist()}
    fields |= dict(
        zip(("pupil_dilation", "pupil_dilation_derivative", "running_speed"), behavior.T.tolist(), strict=True)
    )
    as_json = json.dumps(fields).encode()
    binary = b"".join([head.encode(), *(array.tobytes() for array in arrays)])
    return [
        Contender(
            "**ours**, v2, binary",
            pid,
            port,
            http_request("/v2/models/tiny.A/infer", binary, Inference_Header_Content_Length=str(len(head))),
            lambda body: np.frombuffer(body[-4 * n_neurons :], np.float32),
        ),
        Contender(
            "**ours**, JSON, .npy back",
            pid,
            port,
            http_request("/predict", as_json, Content_Type="application/json", Accept="application/x-npy"),
            lambda body: np.load(io.BytesIO(body)),
        ),
        Contender(
            "**ours**, JSON",
            pid,
            port,
            http_request("/predict", as_json, Content_Type="application/json"),
            lambda body: np.array(json.loads(body)["responses"]),
        ),
    ]


def wait_until_right(contender: Contender, expected: np.ndarray) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            got = asyncio.run(once(contender))
            break
        except (OSError, RuntimeError, EOFError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-5, err_msg=contender.name)


def report_tiny(medians: dict[str, tuple[float, ...]], plain: str, rounds: int, neurons: int) -> None:
    packages = [name for name in ("bentoml", "litserve", "uvicorn", "onnxruntime") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    lit = max((rate for name, (rate, _) in medians.items() if name.startswith("LitServe")), default=None)
    print(f"A tiny model of {neurons:,} neurons, {CONNECTIONS} connections, one image a request, medians of {rounds}")
    print(f"rounds; {versions}\n")
    print("| server | requests/s | CPU ms a request | of BentoML's JSON | of LitServe |")
    print("|---|--:|--:|--:|--:|")
    for name, (requests, cpu) in medians.items():
        beside = f"{requests / lit:.2f}" if lit else ""
        print(f"| {name} | {requests:,.0f} | {cpu:.2f} | {requests / medians[plain][0]:.2f} | {beside} |")
    print("\nTarget: ours in binary at least 4 times BentoML's JSON, and at least LitServe's rate.\n")


def published(bundle: Path | None, rounds: int, neurons: int, burst: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = bundle or Path(temporary) / "published"
        if not (folder / MANIFEST).exists():
            export(folder, neurons)
        engine = Engine.load(folder, provider="cpu", max_batch=8)
        engine.warm_up()
        with serving(folder, Path(temporary)) as server:
            server.wait_for("/readyz", 200)
            times = asyncio.run(measure(server.url, engine, rounds, burst))
    median = {name: statistics.median(values) for name, values in times.items()}
    n_neurons = next(iter(engine.manifest.mice.values())).n_neurons
    what = "Table A.2, random weights" if bundle is None else f"Bundle {engine.manifest.name}"
    print(f"{what}, {n_neurons:,} neurons, medians of {rounds} rounds\n")
    print("| what | seconds |")
    print("|---|--:|")
    for name, value in median.items():
        print(f"| {name} | {value:.3f} |")
    loop, lone = median[f"engine, {burst} images, 8 at a time"], median["engine, one image"]
    print("\n| ratio | measured | bound |")
    print("|---|--:|--:|")
    print(f"| throughput, served / engine | {loop / median[f'served, {burst} requests at once']:.2f} | at least 0.95 |")
    print(f"| latency, served / engine | {median['served, one request'] / lone:.2f} | at most 1.05 |")
    after = median["served, one request right after"] / median["engine, one image right after"]
    print(f"| the same, after the burst and after the loop | {after:.2f} | at most 1.05 |")


def export(folder: Path, neurons: int) -> None:
    from bench_engine import build

    from training.checkpoints.checkpoint import Checkpoint
    from training.checkpoints.ensemble import Ensemble
    from training.export import export_bundle

    export_bundle(Ensemble([Checkpoint(twin=build(neurons, 2))]), folder)


async def measure(url: str, engine: Engine, rounds: int, burst: int) -> dict[str, list[float]]:
    mouse, record = next(iter(engine.manifest.mice.items()))
    rng = np.random.default_rng(0)
    images, behavior, pupil_center = (
        rng.standard_normal((burst, *shape)).astype(np.float32) for shape in (record.image_shape, (3,), (2,))
    )
    times: dict[str, list[float]] = {}

    async def timed(name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        result = call()
        if asyncio.iscoroutine(result):
            await result
        times.setdefault(name, []).append(time.perf_counter() - start)

    def predict(start: int, stop: int) -> np.ndarray:
        return engine.predict(mouse, images[start:stop], behavior[start:stop], pupil_center[start:stop])

    def loop() -> None:
        for start in range(0, burst, 8):
            predict(start, start + 8)

    async def served(i: int) -> None:
        names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
        form = {"mouse": mouse, "pupil_center": json.dumps(pupil_center[i].tolist())}
        form |= {name: str(float(value)) for name, value in zip(names, behavior[i], strict=True)}
        stream = io.BytesIO()
        np.save(stream, images[i])
        response = await http.post("/predict", data=form, files={"image": ("x.npy", stream.getvalue())})
        response.raise_for_status()
        answers[i] = np.load(io.BytesIO(response.content))[0]

    async def all_at_once() -> None:
        await asyncio.gather(*map(served, range(burst)))

    answers: dict[int, np.ndarray] = {}
    headers = {"Accept": "application/x-npy"}
    limits = httpx.Limits(max_connections=burst)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=300) as http:
        await served(0)
        for _ in range(rounds):
            for _ in range(LONE):
                await timed("engine, one image", lambda: predict(0, 1))
                await timed("served, one request", lambda: served(0))
            await timed(f"served, {burst} requests at once", all_at_once)
            await timed("served, one request right after", lambda: served(1))
            await timed(f"engine, {burst} images, 8 at a time", loop)
            await timed("engine, one image right after", lambda: predict(1, 2))
    np.testing.assert_allclose(
        np.stack([answers[i] for i in range(min(8, burst))]), predict(0, min(8, burst)), atol=1e-4
    )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per server and round (default: %(default)s)")
    parser.add_argument("--neurons", type=int, default=8000, help="of the larger models (default: %(default)s)")
    parser.add_argument("--published", type=Path, metavar="BUNDLE", help="exported there unless it exists")
    parser.add_argument("--burst", type=int, default=48, help="requests at once (default: %(default)s)")
    parser.add_argument("--only", choices=("tiny", "published"), help="run only one part")
    args = parser.parse_args()
    if args.only in (None, "tiny"):
        for neurons in (args.neurons, 7):
            tiny(args.rounds, args.seconds, neurons)
    if args.only in (None, "published"):
        published(args.published, args.rounds, args.neurons, args.burst)


if __name__ == "__main__":
    main()
