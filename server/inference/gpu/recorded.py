"""CUDA graphs: a core's kernels, recorded once per batch size and launched together.

A core at the published size launches some 130 kernels, which at small batches take longer to launch than to run.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.inference.gpu.batch_sizes import batch_sizes, padded, padded_size
from server.inference.sessions import Precision, Provider, Session, Stop, Tensor, unloadable

__all__ = ["GPU", "RecordedSession"]

# Held by each call of an engine on a GPU, and while kernels are recorded: meanwhile no thread may allocate its memory.
GPU = threading.RLock()


@dataclass(frozen=True)
class _Recording:
    """One batch size: the buffers that its kernels were recorded with, and what runs them."""

    inputs: dict[str, ort.OrtValue]
    outputs: dict[str, ort.OrtValue]
    binding: ort.IOBinding
    options: ort.RunOptions


class RecordedSession:
    """A `Graph` whose inputs all have the batch as their first axis, and whose outputs have no other dynamic axis.

    A batch is padded to the next of a few sizes. Outputs that stay on the device keep that padding, and are valid until
    the next run. On a CPU nothing is recorded; the sizes and the buffers are the same.

    Args:
        largest: images in the largest batch.
    """

    reads_from = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        wanted: Provider,
        threads: int | None,
        largest: int,
        stop: Stop | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self._stop = stop or Stop()
        session = Session(
            path, wanted=wanted, threads=threads, stop=self._stop, precision=precision, cuda_graph=wanted != "cpu"
        )
        self.inputs, self.outputs, self.shapes = session.inputs, session.outputs, session.shapes
        self.provider, self.device = session.provider, session.device
        self._runtime = session.runtime
        self._path = path
        self._sizes = batch_sizes(largest)
        self._input_types = {value.name: (value.shape, _NUMPY[value.type]) for value in self._runtime.get_inputs()}
        self._output_types = {value.name: (value.shape, _NUMPY[value.type]) for value in self._runtime.get_outputs()}
        with GPU:
            self._recordings = {size: self._record(size) for size in self._sizes}

    def run(self, tensors: Mapping[str, Tensor], stay: Collection[str] = ()) -> dict[str, Any]:
        given = {name: np.asarray(tensors[name]) for name in self.inputs}
        batch = len(next(iter(given.values())))
        size = padded_size(batch, self._sizes[-1])
        recording = self._recordings[size]
        for name, tensor in given.items():
            recording.inputs[name].update_inplace(np.ascontiguousarray(padded(tensor, size)))
        self._runtime.run_with_iobinding(recording.binding, recording.options)
        # A copy: on a CPU .numpy() is a view of the buffer.
        return {
            name: value if name in stay else value.numpy()[:batch].copy() for name, value in recording.outputs.items()
        }

    def _record(self, size: int) -> _Recording:
        """Allocates the buffers of a batch size, and runs once with zeros: that is when onnxruntime records."""

        def buffers(types: dict[str, tuple[list[int | str], type]]) -> dict[str, ort.OrtValue]:
            return {
                name: ort.OrtValue.ortvalue_from_shape_and_type([size, *shape[1:]], dtype, self.device, 0)
                for name, (shape, dtype) in types.items()
            }

        binding = self._runtime.io_binding()
        recorded = {"gpu_graph_id": str(size)} if self.device == "cuda" else {}
        options = self._stop.run_options(**recorded)
        try:
            inputs, outputs = buffers(self._input_types), buffers(self._output_types)
            for name, value in inputs.items():
                shape, dtype = self._input_types[name]
                value.update_inplace(np.zeros([size, *shape[1:]], dtype))
                binding.bind_ortvalue_input(name, value)
            for name, value in outputs.items():
                binding.bind_ortvalue_output(name, value)
            self._runtime.run_with_iobinding(binding, options)
        except Exception as error:  # onnxruntime raises its own classes, without a common base but Exception
            raise unloadable(self._path, f"onnxruntime {ort.__version__} in batches of {size}", error) from error
        return _Recording(inputs, outputs, binding, options)


_NUMPY: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
