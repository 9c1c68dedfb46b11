"""Memory of NVIDIA GPUs for Prometheus, asked of the driver's own repository; nothing where there is none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["GPUMemory", "driver"]


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def driver() -> Any:
    """NVML, which comes with the driver; None where there is no driver."""
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None


class GPUMemory(Collector):
    """v1t_gpu_memory_bytes of each GPU that this process sees, whoever uses it.

    Args:
        open_driver: loads NVML, on the first scrape.
    """

    def __init__(self, open_driver: Callable[[], Any] = driver) -> None:
        self._open_driver = open_driver
        self._nvml: Any = None
        self._gpus: list[ctypes.c_void_p] | None = None

    def describe(self) -> list[GaugeMetricFamily]:
        return [_family()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._gpus is None:
            self._gpus = self._open()
        family = _family()
        for number, gpu in enumerate(self._gpus):
            memory = _Memory()
            if self._nvml.nvmlDeviceGetMemoryInfo(gpu, ctypes.byref(memory)) == 0:
                family.add_metric([str(number), "used"], memory.used)
                family.add_metric([str(number), "free"], memory.free)
        if family.samples:
            yield family

    def _open(self) -> list[ctypes.c_void_p]:
        self._nvml = self._open_driver()
        count = ctypes.c_uint()
        if self._nvml is None or self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        gpus = []
        for number in range(count.value):
            gpu = ctypes.c_void_p()
            if self._nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(gpu)) == 0:
                gpus.append(gpu)
        return gpus


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily("v1t_gpu_memory_bytes", "Memory of a GPU, whoever uses it", labels=["gpu", "state"])
