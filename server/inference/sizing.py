"""`python -m server size`: how many users one server answers in time, and how many servers a lab needs.

The cost of a bundle is measured on this machine: a run of the engine takes `fixed + image * images` seconds. The queue
is then simulated as the server's batcher works: requests arrive at random (Poisson), each costs the HTTP side some
time, and what waits when the engine is free shares its next run, up to the largest batch. While HTTP, which keeps one
core busy, and the engine work at the same time and want more cores than there are, both are slower by the same factor.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from server.inference.benchmark import Case, measure, positive
from server.inference.engine import Engine, Stimulus
from server.inference.processors import usable_cores
from server.inference.sessions import Precision, Provider

__all__ = ["DESCRIPTION", "Cost", "add_arguments", "capacity", "most_requests", "run", "simulate"]

DESCRIPTION = """Measures a bundle's cost on this machine, simulates the server's queue, and prints:

  cost        of a run of the engine: a fixed part, and a part for each image
  latency     median and 99th percentile by load
  users       how many one server answers in time, and how many servers the given users need

One run of the engine has at most --max-batch images (V1T_MAX_BATCH). Leave the machine alone while it measures."""

LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # of the capacity
REQUESTS = 20_000  # simulated for each load


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a request take.

    Attributes:
        fixed: of a run of the engine, whatever its images.
        image: of each image in it.
        request: of the HTTP side, for each request.
        busy: cores that a run of the engine keeps busy.
        cores: of the machine, or as many of them as the server has to itself.
    """

    fixed: float
    image: float
    request: float
    busy: float = 1.0
    cores: float = math.inf

    @property
    def speed_of_both(self) -> float:
        """Of HTTP and of the engine while both work, relative to each alone."""
        return min(1.0, self.cores / (1 + self.busy))

    def of_run(self, images: int) -> float:
        return self.fixed + self.image * images


def capacity(cost: Cost, *, images: int, max_batch: int) -> float:
    """The most requests per second, of so many images each, that can be answered at all.

    With the slower of the two at work all the time and the other for a share f of it, a second does 1 - f + f s seconds
    of the slower one's work and f s of the other's (s: `Cost.speed_of_both`).
    """
    engine = cost.of_run(max_batch) / max_batch * images if images < max_batch else _alone(cost, images, max_batch)
    speed = cost.speed_of_both
    return 1 / (max(engine, cost.request) + min(engine, cost.request) * (1 - speed) / speed)


def simulate(
    cost: Cost, rate: float, *, images: int, max_batch: int, seed: int = 0, requests: int = REQUESTS
) -> npt.NDArray[np.float64]:
    """Latencies in seconds of requests that arrive at random; those of the first tenth, the start, are left out.

    Args:
        rate: requests per second.
        images: in each request.
    """
    rng = np.random.default_rng(seed)
    arrived = np.cumsum(rng.exponential(1 / rate, requests))
    finished = np.empty(requests)
    together = max(1, max_batch // images)  # requests in one run
    reading: deque[int] = deque()
    ready: deque[int] = deque()
    running: list[int] = []
    now, http, engine = 0.0, math.inf, math.inf  # the time, and seconds of work left; infinite: idle
    coming = answered = 0
    while answered < requests:
        speed = cost.speed_of_both if http < math.inf and engine < math.inf else 1.0
        arrival = float(arrived[coming]) - now if coming < requests else math.inf
        step = min(arrival, http / speed, engine / speed)
        now, http, engine = now + step, http - step * speed, engine - step * speed
        if step == arrival:
            reading.append(coming)
            coming += 1
        elif http <= engine:
            ready.append(reading.popleft())
            http = math.inf
        else:
            finished[running] = now
            answered += len(running)
            engine = math.inf
        if http == math.inf and reading:
            http = cost.request
        if engine == math.inf and ready:
            running = [ready.popleft() for _ in range(min(len(ready), together))]
            engine = _alone(cost, images, max_batch) if images > max_batch else cost.of_run(len(running) * images)
    return (finished - arrived)[requests // 10 :]


def most_requests(cost: Cost, *, images: int, max_batch: int, within: float) -> float:
    """The most requests per second of which 99 % are answered within some seconds; 0 if even a lone one is not."""
    low, high = 0.0, capacity(cost, images=images, max_batch=max_batch)
    if _alone(cost, images, max_batch) + cost.request > within:
        return 0.0
    for _ in range(12):  # to 0.02 % of the capacity
        middle = (low + high) / 2
        late = np.percentile(simulate(cost, middle, images=images, max_batch=max_batch), 99) > within
        low, high = (low, middle) if late else (middle, high)
    return low


def _alone(cost: Cost, images: int, max_batch: int) -> float:
    """Seconds of the engine for a request that shares its runs with no other."""
    return math.ceil(images / max_batch) * cost.fixed + images * cost.image


def measured(engine: Engine, mouse_id: str, *, request: float, rounds: int = 10) -> Cost:
    """The cost of predictions, from runs of one image and of the largest batch, in turns, and the cores they use."""
    rng = np.random.default_rng(0)
    mouse = engine.manifest.mice[mouse_id]

    def stimulus(size: int) -> Stimulus:
        shapes = (mouse.image_shape, (len(mouse.behavior),), (len(mouse.pupil_center),))
        image, behavior, pupil_center = (rng.standard_normal((size, *s)) for s in shapes)
        return engine.check(mouse_id, image, behavior, pupil_center)

    sizes = (1, max(2, engine.max_batch))
    cases = [Case(str(size), partial(engine.predict_many, [stimulus(size)]), size) for size in sizes]
    cpu, wall = time.process_time(), time.perf_counter()
    few, many = measure(cases, rounds=rounds).values()
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    image = max(0.0, (many - few) / (sizes[1] - sizes[0]))
    return Cost(fixed=max(0.0, few - image), image=image, request=request, busy=busy, cores=usable_cores())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder with a manifest.json, as `python -m training export` writes")
    parser.add_argument("--mouse", help="whose images to time (default: the first mouse)")
    parser.add_argument("--users", type=_number, default=10.0, help="people at the same time (default: 10)")
    parser.add_argument(
        "--each",
        type=_number,
        default=2.0,
        metavar="RATE",
        help="requests a second of each; a hand on a slider of the explorer makes some 10 (default: %(default)s)",
    )
    parser.add_argument("--images", type=positive, default=1, help="in each request (default: %(default)s)")
    parser.add_argument(
        "--within",
        type=_number,
        default=0.3,
        metavar="SECONDS",
        help="99 %% of the replies shall take no longer (default: %(default)s)",
    )
    parser.add_argument(
        "--request-ms",
        type=_number,
        default=1.0,
        metavar="MS",
        help="of the HTTP side for each request; `tests/perf/bench_service.py` measures it (default: %(default)s)",
    )
    parser.add_argument("--price", type=_number, metavar="P", help="of an hour of the machine, in any currency")
    parser.add_argument("--threads", type=positive, metavar="N", help="of one graph on the CPU (default: one per core)")
    parser.add_argument("--provider", choices=get_args(Provider), default="auto", help="where the graphs run")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the cores")
    parser.add_argument(
        "--max-batch", type=positive, default=8, metavar="B", help="images in one run (default: %(default)s)"
    )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run(args: argparse.Namespace) -> int:
    engine = Engine.load(
        args.bundle,
        provider=args.provider,
        precision=args.precision,
        threads=args.threads,
        max_batch=args.max_batch,
    )
    mouse_id = args.mouse or next(iter(engine.manifest.mice))
    cost = measured(engine, mouse_id, request=args.request_ms / 1e3)
    print(f"bundle    {engine.manifest.name}, mouse {mouse_id}, on {engine.provider}, {engine.precision}")
    print(
        f"cost      {cost.fixed * 1e3:.2f} ms a run of the engine and {cost.image * 1e3:.2f} ms an image, on "
        f"{cost.busy:.1f} of {cost.cores:g} cores, measured; {args.request_ms:g} ms a request of HTTP, as given"
    )
    print("\n".join(report(cost, args)))
    return 0


def report(cost: Cost, args: argparse.Namespace) -> list[str]:
    """The lines about latency, users and price."""
    images, max_batch = args.images, args.max_batch
    most = capacity(cost, images=images, max_batch=max_batch)
    lines = [
        f"capacity  {most:.1f} requests/s of {images} image{'s'[: images > 1]}",
        "",
        f"{'load':>6}{'requests/s':>12}{'median ms':>12}{'p99 ms':>10}",
    ]
    for load in LOADS:
        median, late = np.percentile(simulate(cost, load * most, images=images, max_batch=max_batch), (50, 99)) * 1e3
        lines.append(f"{load:>6.0%}{load * most:>12.1f}{median:>12.1f}{late:>10.1f}")
    rate = most_requests(cost, images=images, max_batch=max_batch, within=args.within)
    lines.append("")
    if rate * args.within < 1e-3:
        lines.append(
            f"users     none: a lone request takes longer than {args.within:g} s; try another machine, or fp16"
        )
        return lines
    wanted = args.users * args.each
    servers = math.ceil(wanted / rate)
    lines.append(
        f"users     one server answers {rate:.1f} requests/s with 99 % within {args.within:g} s: "
        f"{rate / args.each:.0f} users of {args.each:g} requests/s"
    )
    lines.append(f"servers   {servers} for {args.users:g} users, one device each")
    if args.price is not None:
        per_image = args.price / 3600 / images
        full, then = per_image / most * 1e6, per_image * servers / wanted * 1e6
        lines.append(f"price     {full:.3g} a million images at full load, {then:.3g} with these users")
    return lines
