"""ONNX Runtime sessions: which provider runs a graph, with how many threads, and the truth about both."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from server.errors import BundleError

__all__ = ["Provider", "Session", "available_provider"]

# What an operator can ask for; "auto" takes CUDA where it works and says so where it does not.
Provider = Literal["auto", "cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


def available_provider(wanted: Provider) -> str:
    """The onnxruntime provider to use.

    Raises:
        BundleError: CUDA was asked for by name and this onnxruntime has none.
    """
    available = ort.get_available_providers()
    if wanted == "cuda" and _CUDA not in available:
        raise BundleError(
            "provider 'cuda' was asked for, but this onnxruntime has no CUDA",
            got=", ".join(available),
            expected=_CUDA,
            hint="Install server/requirements-gpu.txt in place of onnxruntime, or set V1T_PROVIDER=cpu.",
        )
    return _CUDA if wanted != "cpu" and _CUDA in available else _CPU


@functools.cache
def _share_arena() -> None:
    """One pool of CPU memory for all sessions, on the first of them.

    A pool never shrinks. Graphs run one after another, so five members with a pool each would hold five times what one
    needs: 1.8 GB in place of 0.4 at batch 8 and the published size.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


class Session:
    """One graph, ready to run.

    Attributes:
        inputs: the tensor names that the graph takes.
        outputs: those that it gives.
        shapes: of the outputs, a name where an axis is dynamic.
        provider: the provider that really runs it; onnxruntime falls back to the CPU with no more than a log line.
    """

    def __init__(self, path: Path, *, wanted: Provider, threads: int | None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; what a fallback means is said below
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = available_provider(wanted)
        providers = [provider] if provider == _CPU else [provider, _CPU]
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises its own classes, without a common base but Exception
            raise BundleError(f"{path.name} cannot be loaded by onnxruntime {ort.__version__}: {error}") from error
        self.provider = str(self._session.get_providers()[0])
        if wanted == "cuda" and self.provider != _CUDA:
            raise BundleError(
                "provider 'cuda' was asked for, but onnxruntime fell back to the CPU",
                got=self.provider,
                expected=_CUDA,
                hint="Check the NVIDIA driver and the CUDA libraries, or set V1T_PROVIDER=cpu.",
            )
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.shapes: dict[str, tuple[int | str, ...]] = {
            value.name: tuple(value.shape) for value in self._session.get_outputs()
        }

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph on those of the tensors that it takes; returns all of its outputs by name."""
        results = self._session.run(None, {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))
