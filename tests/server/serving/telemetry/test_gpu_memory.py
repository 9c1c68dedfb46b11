"""GPU memory in the metrics, with a simulated NVML instead of a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.serving.telemetry.metrics import GPUMemory


def fails(*_: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


def memory_of(gpu: int) -> Any:
    return fails() if gpu == 1001 else SimpleNamespace(total=80 * 2**30, free=79 * 2**30, used=2**30)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NVML of two GPUs, the second of which does not answer; the calls that open it."""
    calls: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("nvmlInit"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: 1000 + number)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory_of)
    return calls


def test_the_memory_of_each_gpu_is_measured(two_gpus: list[str]) -> None:
    registry = CollectorRegistry()
    registry.register(GPUMemory())
    assert not two_gpus  # NVML is opened on the first scrape
    for _ in range(2):
        samples = [sample for family in registry.collect() for sample in family.samples]
        assert {(one.labels["gpu"], one.labels["state"]): one.value for one in samples} == {
            ("0", "used"): 2**30,
            ("0", "free"): 79 * 2**30,
        }
    assert two_gpus == ["nvmlInit"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_without_a_gpu_there_is_no_gpu_metric(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, call, fails)
    registry = CollectorRegistry()
    registry.register(GPUMemory())
    assert generate_latest(registry) == b""


def test_nvml_of_this_machine_is_queried_without_an_error() -> None:
    registry = CollectorRegistry()
    registry.register(GPUMemory())
    generate_latest(registry)
