"""Prometheus metrics. The values of every label are bounded, so that no client can add series."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pynvml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.serving import malloc

__all__ = ["CONTENT_TYPE", "OTHER", "SEVERAL", "UNKNOWN", "GPUMemory", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "unknown"  # label of a mouse that no bundle holds
SEVERAL = "several"  # label of the mice of one request
OTHER = "other"  # label of a route that does not exist

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The collectors of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(GPUMemory())
        self.requests = Counter(
            "v1t_requests", "Requests, by route, mouse and status", ["route", "mouse", "status"], registry=self.registry
        )
        self.request_seconds = self._histogram("v1t_request_seconds", "From first byte in to first byte out", "route")
        self.batch_images = self._histogram("v1t_batch_images", "Images per run of the engine", buckets=_IMAGES)
        self.batch_requests = self._histogram("v1t_batch_requests", "Requests per run of the engine", buckets=_IMAGES)
        self.compute_seconds = self._histogram("v1t_compute_seconds", "One run of the engine")
        self.stage_seconds = self._histogram(
            "v1t_stage_seconds",
            "Stages of a run: stem, core, readout, ensemble; on a GPU the last one waits for the others",
            "stage",
        )
        self.work_seconds = self._histogram(
            "v1t_work_seconds", "One run that is not shared with other requests, such as a gradient", "work"
        )
        self.queue_seconds = self._histogram("v1t_queue_seconds", "A request's wait for its first run")
        self.load_seconds = self._histogram("v1t_load_seconds", "Loading, verifying and warming one bundle")
        self.outside_recording = Counter(
            "v1t_outside_recording",
            "Answered requests with an input outside of what was recorded",
            ["model", "mouse", "input"],
            registry=self.registry,
        )
        self.in_flight = self._gauge("v1t_requests_in_flight", "Requests that are being handled")
        self.queue_images = self._gauge("v1t_queue_images", "Images that wait")
        self.connections = self._gauge("v1t_connections", "Open connections")
        self.connections_refused = Counter(
            "v1t_connections_refused",
            "Connections that were closed, or answered before the application, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.memory = self._gauge("v1t_memory_bytes", "Memory reserved for requests and unread replies")
        self._gauge("v1t_heap_bytes", "Bytes that malloc has allocated and that are in use").set_function(
            malloc.bytes_in_use
        )
        self.ready = self._gauge("v1t_ready", "1 when every bundle is loaded and warm")
        self.loading = self._gauge("v1t_loading", "Bundles that are being loaded")
        self.refused = self._gauge("v1t_refused", "Bundles that were refused at the last look")
        self.key_files_refused = self._gauge(
            "v1t_key_files_refused", "Files of keys that cannot be used; the keys read before them are"
        )
        self.bundle = self._gauge(
            "v1t_bundle", "Bundles served: 1 loaded, 0 unloaded", "name", "version", "hash", "provider", "members"
        )

    def _histogram(self, name: str, what: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, what, labels, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(name, what, labels, registry=self.registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class GPUMemory(Collector):
    """v1t_gpu_memory_bytes of each GPU of this machine, used by any process; nothing without an NVIDIA driver."""

    @cached_property
    def _gpus(self) -> list[Any]:
        try:
            pynvml.nvmlInit()
            return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            return []

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily("v1t_gpu_memory_bytes", "Memory of a GPU, of any process", labels=["gpu", "state"])]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        (family,) = self.describe()
        for number, gpu in enumerate(self._gpus):
            with contextlib.suppress(pynvml.NVMLError):  # this GPU does not answer; others may
                memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                family.add_metric([str(number), "used"], memory.used)
                family.add_metric([str(number), "free"], memory.free)
        if family.samples:
            yield family
