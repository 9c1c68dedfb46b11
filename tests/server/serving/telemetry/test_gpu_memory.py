"""GPU memory in the metrics, with a driver of our own making: the real one is asked in the same way."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.serving.gpu_memory import GPUMemory


class Driver:
    """NVML of two GPUs, the second of which answers nothing."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.fails:
                return 9
            values = [argument._obj for argument in arguments if hasattr(argument, "_obj")]
            if name == "nvmlDeviceGetCount_v2":
                values[0].value = 2
            if name == "nvmlDeviceGetHandleByIndex_v2":
                values[0].value = 1000 + arguments[0].value
            if name == "nvmlDeviceGetMemoryInfo":
                if arguments[0].value == 1001:
                    return 15
                words = ctypes.cast(ctypes.pointer(values[0]), ctypes.POINTER(ctypes.c_ulonglong))
                words[0], words[1], words[2] = 80 * 2**30, 79 * 2**30, 2**30  # total, free, used
            return 0

        return call


def test_each_gpu_that_answers_has_its_memory() -> None:
    driver = Driver()
    registry = CollectorRegistry()
    registry.register(GPUMemory(lambda: driver))
    assert not driver.calls  # it is opened when somebody asks
    for _ in range(2):
        samples = [sample for family in registry.collect() for sample in family.samples]
        assert {(one.labels["gpu"], one.labels["state"]): one.value for one in samples} == {
            ("0", "used"): 2**30,
            ("0", "free"): 79 * 2**30,
        }
    assert driver.calls.count("nvmlInit_v2") == 1


@pytest.mark.parametrize("fails", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", None])
def test_without_a_gpu_there_is_no_such_metric(fails: str | None) -> None:
    registry = CollectorRegistry()
    registry.register(GPUMemory(lambda: None if fails is None else Driver(fails)))
    assert generate_latest(registry) == b""
