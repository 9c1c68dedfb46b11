"""Predict the responses of mouse visual cortex with a digital twin.

    from v1t_client import Client

    with Client("http://127.0.0.1:3000") as client:
        prediction = client.predict("A", "image.png", pupil_dilation=41, running_speed=3)
    print(prediction)

`Client` and `AsyncClient` are clients of an inference server. Predictions are of type `Prediction`, and all errors are
subclasses of `V1TError`.
"""

from __future__ import annotations

import importlib
import typing

from v1t_client._version import __version__

if typing.TYPE_CHECKING:
    from v1t_client._answers.attention import Attention
    from v1t_client._answers.gradient import Gradient
    from v1t_client._answers.mice import BehaviorState, Channel, Mouse, MouseDetail, NeuronTable
    from v1t_client._answers.notes import Note
    from v1t_client._answers.prediction import Model, Prediction
    from v1t_client._async_client import AsyncClient
    from v1t_client._client import Client
    from v1t_client._errors import (
        Busy,
        ConnectionFailed,
        DeadlineExceeded,
        InvalidArgument,
        InvalidRequest,
        MissingExtra,
        ModelChanged,
        NotFound,
        NotReady,
        OutsideRecording,
        ReplyInvalid,
        ServerError,
        TimedOut,
        TooLarge,
        Unauthorized,
        V1TError,
    )
    from v1t_client._images import Image
    from v1t_client._large_sets.image_sets import Images
    from v1t_client._predictor import DifferentiablePredictor, Predictor
    from v1t_client._protocol.arguments import Resize, State, Units
    from v1t_client._replicas import Replicas

__all__ = [
    "AsyncClient",
    "Attention",
    "BehaviorState",
    "Busy",
    "Channel",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DifferentiablePredictor",
    "Gradient",
    "Image",
    "Images",
    "InvalidArgument",
    "InvalidRequest",
    "MissingExtra",
    "Model",
    "ModelChanged",
    "Mouse",
    "MouseDetail",
    "NeuronTable",
    "NotFound",
    "NotReady",
    "Note",
    "OutsideRecording",
    "Prediction",
    "Predictor",
    "Replicas",
    "ReplyInvalid",
    "Resize",
    "ServerError",
    "State",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "Units",
    "V1TError",
    "__version__",
]

# Public name -> its module, which is imported when the name is first used: `import v1t_client` alone loads no numpy and
# no httpx, and a command line only what it needs.
_MODULES = {
    "AsyncClient": "_async_client",
    "Attention": "_answers.attention",
    "BehaviorState": "_answers.mice",
    "Busy": "_errors",
    "Channel": "_answers.mice",
    "Client": "_client",
    "ConnectionFailed": "_errors",
    "DeadlineExceeded": "_errors",
    "DifferentiablePredictor": "_predictor",
    "Gradient": "_answers.gradient",
    "Image": "_images",
    "Images": "_large_sets.image_sets",
    "InvalidArgument": "_errors",
    "InvalidRequest": "_errors",
    "MissingExtra": "_errors",
    "Model": "_answers.prediction",
    "ModelChanged": "_errors",
    "Mouse": "_answers.mice",
    "MouseDetail": "_answers.mice",
    "NeuronTable": "_answers.mice",
    "NotFound": "_errors",
    "NotReady": "_errors",
    "Note": "_answers.notes",
    "OutsideRecording": "_errors",
    "Prediction": "_answers.prediction",
    "Predictor": "_predictor",
    "Replicas": "_replicas",
    "ReplyInvalid": "_errors",
    "Resize": "_protocol.arguments",
    "ServerError": "_errors",
    "State": "_protocol.arguments",
    "TimedOut": "_errors",
    "TooLarge": "_errors",
    "Unauthorized": "_errors",
    "Units": "_protocol.arguments",
    "V1TError": "_errors",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
