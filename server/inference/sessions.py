"""Sessions: graphs opened in a runtime, on a provider, in a precision; each reports what it really runs on."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import onnxruntime as ort

from server.errors import BundleError
from server.inference.gpu.stream import shared_stream

__all__ = [
    "Graph",
    "OpenVINOSession",
    "Precision",
    "Provider",
    "Session",
    "Slot",
    "Stop",
    "Tensor",
    "available_provider",
    "on_device",
    "on_gpu",
    "open_core",
    "unloadable",
]

# "auto" uses CUDA where it works, and the CPU elsewhere.
Provider = Literal["auto", "cpu", "cuda", "openvino"]
# Of the cores. Stems, readouts and gradients are always float32. "tf32" is float32 whose products CUDA rounds to TF32.
Precision = Literal["fp32", "tf32", "fp16", "bf16"]

# In memory, or on the device, where onnxruntime left it for the next graph.
Tensor: TypeAlias = np.ndarray | ort.OrtValue

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


def available_provider(wanted: Provider) -> str:
    """The onnxruntime provider to use.

    Raises:
        BundleError: CUDA is required and this onnxruntime has none.
    """
    available = ort.get_available_providers()
    if wanted == "cuda" and _CUDA not in available:
        raise BundleError(
            "provider 'cuda' is required, but this onnxruntime has no CUDA",
            got=", ".join(available),
            expected=_CUDA,
            hint="Install server/requirements-gpu.txt in place of onnxruntime, or set V1T_PROVIDER=cpu.",
        )
    return _CUDA if wanted in ("auto", "cuda") and _CUDA in available else _CPU


def on_gpu(wanted: Provider) -> bool:
    """Whether graphs are opened on a GPU. Raises BundleError as `available_provider` does."""
    return wanted != "openvino" and available_provider(wanted) == _CUDA


@functools.cache
def _load_cuda() -> None:
    """Loads the CUDA libraries of the nvidia-* packages that onnxruntime-gpu's extras install."""
    ort.set_default_logger_severity(3)  # not a warning per graph that ScatterND wants distinct indices, as ours are
    ort.preload_dlls()


@functools.cache
def _share_arena() -> None:
    """Has all sessions share one pool of CPU memory.

    A pool never shrinks. Graphs run one after another, so five members with a pool each would hold five times what one
    needs: 1.8 GB instead of 0.4 at batch 8 and the published size.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


class Slot(NamedTuple):
    """Where an output goes: a position on the first axis of a float32 tensor on the device."""

    tensor: ort.OrtValue
    position: int

    def bind(self, binding: ort.IOBinding, output: str) -> None:
        shape = self.tensor.shape()[1:]
        start = self.tensor.data_ptr() + self.position * math.prod(shape) * np.dtype(np.float32).itemsize
        binding.bind_output(output, self.tensor.device_name(), 0, np.float32, shape, start)


def on_device(array: np.ndarray, device: str) -> Tensor:
    """The array, where graphs on "cpu" or "cuda" read it without a copy of their own."""
    return array if device == "cpu" else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)


class Stop:
    """Ends the runs of all sessions that share it, those in progress and later ones, with an error."""

    def __init__(self) -> None:
        self._stopped = False
        self._options: list[ort.RunOptions] = []

    def run_options(self, **entries: str) -> ort.RunOptions:
        """Options of runs that this can end, with onnxruntime's own entries."""
        options = ort.RunOptions()
        for key, value in entries.items():
            options.add_run_config_entry(key, value)
        options.terminate = self._stopped
        self._options.append(options)
        return options

    def set(self) -> None:
        self._stopped = True
        for options in self._options:
            options.terminate = True


class Graph(Protocol):
    """One graph, ready to run.

    Attributes:
        inputs: names of the input tensors.
        outputs: names of the output tensors.
        shapes: of the outputs; a name where an axis is dynamic.
        provider: what really runs it.
        device: where it leaves outputs that may stay: "cpu" or "cuda".
        reads_from: where its inputs need no copy: "cpu" or "cuda".
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int | str, ...]]
    provider: str
    device: str
    reads_from: str

    def run(self, tensors: Mapping[str, Tensor], stay: Collection[str] = ()) -> dict[str, Any]:
        """Runs the graph; returns all of its outputs by name.

        Args:
            tensors: its inputs by name; others are ignored.
            stay: outputs that may stay on the device, for the next graph.
        """
        ...


class Session:
    """A `Graph` in onnxruntime. That falls back to the CPU with only a log line, so see `provider` for what runs.

    Args:
        model: the graph's file, or the graph.
        precision: of the products on a GPU: "tf32", or as the graph says.
        cuda_graph: whether onnxruntime may record its kernels; see `server.inference.gpu.recorded`.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        wanted: Provider,
        threads: int | None,
        stop: Stop | None = None,
        precision: Precision = "fp32",
        cuda_graph: bool = False,
    ) -> None:
        stop = stop or Stop()
        self._run_options = self._queued = stop.run_options()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; fallbacks are checked below
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = available_provider(wanted)
        providers: list[Any] = [_CPU]
        if provider == _CUDA:
            _load_cuda()
            stream = None if cuda_graph else shared_stream()  # a recorded core is waited for anyway
            providers = [(_CUDA, _cuda_options(precision, cuda_graph, stream)), _CPU]
            if stream is not None:
                self._queued = stop.run_options(disable_synchronize_execution_providers="1")
        try:
            self.runtime = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers
            )
        except Exception as error:  # onnxruntime raises its own classes, without a common base but Exception
            path = Path("a graph") if isinstance(model, bytes) else model
            raise unloadable(path, f"onnxruntime {ort.__version__}", error) from error
        self.provider = str(self.runtime.get_providers()[0])
        if wanted == "cuda" and self.provider != _CUDA:
            raise BundleError(
                "provider 'cuda' is required, but onnxruntime fell back to the CPU",
                got=self.provider,
                expected=_CUDA,
                hint="Check the NVIDIA driver and the CUDA libraries, or set V1T_PROVIDER=cpu.",
            )
        self.device = self.reads_from = "cuda" if self.provider == _CUDA else "cpu"
        self.inputs = tuple(value.name for value in self.runtime.get_inputs())
        self.outputs = tuple(value.name for value in self.runtime.get_outputs())
        self.shapes: dict[str, tuple[int | str, ...]] = {
            value.name: tuple(value.shape) for value in self.runtime.get_outputs()
        }

    def run(
        self, tensors: Mapping[str, Tensor], stay: Collection[str] = (), into: Mapping[str, Slot] = MappingProxyType({})
    ) -> dict[str, Any]:
        """As a `Graph`; outputs in `into` are written there, and not returned.

        On a GPU, where all outputs stay, it may return before they are computed: what reads them waits for them.
        """
        if self.device == "cpu" and not into:  # takes a fifth of the time of a binding, and copies nothing either
            arrays = {name: np.ascontiguousarray(tensors[name]) for name in self.inputs}
            return dict(zip(self.outputs, self.runtime.run(self.outputs, arrays, self._run_options), strict=True))
        binding = self.runtime.io_binding()
        for name in self.inputs:
            tensor = tensors[name]
            if isinstance(tensor, ort.OrtValue):
                binding.bind_ortvalue_input(name, tensor)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
        for name in self.outputs:
            if name in into:
                into[name].bind(binding, name)
            else:
                binding.bind_output(name, self.device if name in stay else "cpu")
        stays = set(self.outputs) <= {*stay, *into}
        self.runtime.run_with_iobinding(binding, self._queued if stays else self._run_options)
        results = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: value if name in stay else value.numpy() for name, value in results if name not in into}


def _cuda_options(precision: Precision, cuda_graph: bool, stream: int | None) -> dict[str, str]:
    return {
        "use_tf32": str(int(precision == "tf32")),  # on by default, with errors of 1e-3
        **({} if stream is None else {"user_compute_stream": str(stream)}),
        "cudnn_conv_algo_search": "HEURISTIC",  # the default measures all algorithms for each new batch size
        "enable_cuda_graph": str(int(cuda_graph)),
    }


class OpenVINOSession:
    """A `Graph` in OpenVINO on the CPU.

    Args:
        precision: of the arithmetic; without it OpenVINO would choose bf16 where the processor has it.
    """

    def __init__(self, path: Path, *, precision: Precision, threads: int | None) -> None:
        openvino = _openvino()
        hints: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,  # the engine runs one call at a time
        }
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = openvino.compile_model(str(path), "CPU", hints)
        except Exception as error:  # openvino raises RuntimeError and classes of its own
            raise unloadable(path, f"OpenVINO {openvino.__version__}", error) from error
        self.provider = "OpenVINO"
        self.device = self.reads_from = "cpu"
        self.inputs = tuple(port.get_any_name() for port in self._model.inputs)
        self.outputs = tuple(port.get_any_name() for port in self._model.outputs)
        self.shapes: dict[str, tuple[int | str, ...]] = {
            port.get_any_name(): tuple(
                size.get_length() if size.is_static else "dynamic" for size in port.get_partial_shape()
            )
            for port in self._model.outputs
        }

    def run(self, tensors: Mapping[str, Tensor], stay: Collection[str] = ()) -> dict[str, Any]:
        results = self._model({name: np.ascontiguousarray(tensors[name]) for name in self.inputs})
        # A copy: the next run writes to the same memory.
        return {name: np.array(results[i]) for i, name in enumerate(self.outputs)}


def open_core(
    path: Path, *, wanted: Provider, precision: Precision, threads: int | None, stop: Stop | None = None
) -> Graph:
    """A core's session. Cores take the time, and are the only graphs that another runtime may run.

    Raises:
        BundleError: the provider has no such precision, is not installed, or cannot run the graph.
    """
    if precision == "bf16" and wanted != "openvino":
        raise BundleError(
            "precision 'bf16' runs in OpenVINO only",
            got=f"provider {wanted!r}",
            expected="provider 'openvino'",
            hint="Set V1T_PROVIDER=openvino, or V1T_PRECISION=fp32; on a GPU fp16 is nearer to fp32 than bf16 is.",
        )
    if precision in ("fp16", "tf32") and wanted == "openvino":
        raise BundleError(
            f"precision {precision!r} runs in onnxruntime only",
            got="provider 'openvino'",
            expected="precision 'fp32' or 'bf16'",
            hint="Set V1T_PRECISION=bf16.",
        )
    if precision == "tf32" and available_provider(wanted) != _CUDA:
        raise BundleError(
            "precision 'tf32' runs on a GPU only",
            got=f"provider {wanted!r}",
            expected="provider 'cuda'",
            hint="Set V1T_PRECISION=fp32.",
        )
    if wanted == "openvino":
        return OpenVINOSession(path, precision=precision, threads=threads)
    return Session(path, wanted=wanted, threads=threads, stop=stop, precision=precision)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BundleError(
            f"provider 'openvino' is required, but the package openvino cannot be imported: {error}",
            hint="pip install -r server/requirements-openvino.txt, or set V1T_PROVIDER=cpu.",
        ) from error
    return openvino


def unloadable(path: Path, runtime: str, error: Exception) -> BundleError:
    """The error of a graph that the runtime cannot load; names the operator that it lacks, if that is the reason."""
    for pattern in _LACKS_OPERATOR:
        if found := re.search(pattern, str(error)):
            return BundleError(
                f"{path.name} has an operator that {runtime} cannot run",
                got=found[1],
                hint="Export the bundle again with --portable: standard operators only.",
            )
    return BundleError(f"{path.name} cannot be loaded by {runtime}: {error}")


# Messages of the runtimes about an operator that they lack, with its name.
_LACKS_OPERATOR = (
    r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\S+)",
    r"Could not find an implementation for (\S+?)\(\d+\) node",
    r"No conversion rule found for operations: ([^\s,]+)",
)
