"""Counts and times per mouse: the statistics extension of the Open Inference Protocol."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.serving.discovery import version_of

if TYPE_CHECKING:
    from server.inference.engine import Engine, Stimulus
    from server.serving.repository import Bundle

__all__ = ["ModelStatistics", "Statistics", "Timing"]

_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Timing:
    """The seconds that one request spent in each stage."""

    reading: float = 0.0  # and decoding its body
    queued: float = 0.0
    computing: float = 0.0  # in the runs that it was part of
    writing: float = 0.0


@dataclass
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def body(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(1e9 * self.seconds)}


@dataclass
class ModelStatistics:
    """Counts of one mouse of one bundle, since the start."""

    last: float = 0.0  # seconds since the epoch
    images: int = 0
    durations: dict[str, _Duration] = field(default_factory=lambda: {name: _Duration() for name in _DURATIONS})
    runs: Counter[int] = field(default_factory=Counter)  # by images
    run_seconds: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))

    def body(self) -> dict[str, Any]:
        """In the protocol's form; there is no cache."""
        nothing = _Duration().body()
        return {
            "last_inference": round(1e3 * self.last),
            "inference_count": self.images,
            "execution_count": self.runs.total(),
            "inference_stats": {
                **{name: duration.body() for name, duration in self.durations.items()},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": _Duration(self.runs[size], self.run_seconds[size]).body(),
                    "compute_output": nothing,
                }
                for size in sorted(self.runs)
            ],
        }


class Statistics:
    """Statistics by model, version and mouse. Runs are counted in the engine's thread, requests on the event loop."""

    def __init__(self) -> None:
        self._models: defaultdict[tuple[str, str, str], ModelStatistics] = defaultdict(ModelStatistics)
        self._lock = threading.Lock()

    def ran(self, engine: Engine, stimuli: Sequence[Stimulus], seconds: float) -> None:
        """Counts a run of the engine."""
        images: Counter[str] = Counter()
        for stimulus in stimuli:
            images[stimulus.mouse_id] += len(stimulus.image)
        with self._lock:
            for mouse_id, n_images in images.items():
                model = self._models[_key(engine, mouse_id)]
                model.runs[n_images] += 1
                model.run_seconds[n_images] += seconds

    def answered(self, engine: Engine, images: Mapping[str, int], timing: Timing) -> None:
        """Counts an answered request: its images of each mouse."""
        total = timing.reading + timing.queued + timing.computing + timing.writing
        seconds = {
            "success": total,
            "queue": timing.queued,
            "compute_input": timing.reading,
            "compute_infer": timing.computing,
            "compute_output": timing.writing,
        }
        with self._lock:
            for mouse_id, n_images in images.items():
                model = self._models[_key(engine, mouse_id)]
                model.last = time.time()
                model.images += n_images
                for name, value in seconds.items():
                    model.durations[name].add(value)

    def failed(self, engine: Engine, images: Mapping[str, int], seconds: float) -> None:
        """Counts a valid request that was not answered."""
        with self._lock:
            for mouse_id in images:
                self._models[_key(engine, mouse_id)].durations["fail"].add(seconds)

    def body(self, bundle: Bundle, mouse_id: str) -> dict[str, Any]:
        """The statistics of one mouse of one bundle, in the protocol's form."""
        with self._lock:
            return self._models[_key(bundle, mouse_id)].body()


def _key(engine: Engine | Bundle, mouse_id: str) -> tuple[str, str, str]:
    return engine.manifest.name, version_of(engine.bundle), mouse_id
