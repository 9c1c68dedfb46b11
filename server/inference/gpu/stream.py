"""The CUDA stream that graphs share, so that one can be queued while another still runs.

By default onnxruntime gives each graph a stream of its own and waits for it after each run; then the GPU idles until
the next graph's first kernel.
"""

from __future__ import annotations

import ctypes
import functools
import os

import onnxruntime as ort

__all__ = ["shared_stream"]


@functools.cache
def shared_stream() -> int | None:
    """The address of the stream; None where the CUDA runtime that onnxruntime was built for cannot be called.

    It is ordered with CUDA's default stream, on which onnxruntime copies tensors to and from the device.
    """
    major = str(ort.cuda_version).partition(".")[0]
    try:
        runtime = ctypes.CDLL(f"cudart64_{major}.dll" if os.name == "nt" else f"libcudart.so.{major}")
    except OSError:
        return None
    stream = ctypes.c_void_p()
    failed = runtime.cudaStreamCreate(ctypes.byref(stream))
    return None if failed else stream.value
