"""Predict the responses of mouse visual cortex with a digital twin.

    from v1t_client import Client

    with Client("http://127.0.0.1:3000") as client:
        prediction = client.predict("A", "image.png", pupil_dilation=41, running_speed=3)
    print(prediction)

`Client` and `AsyncClient` are clients of an inference server. Predictions are of type `Prediction`, and all errors are
subclasses of `V1TError`.
"""

from __future__ import annotations

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
from v1t_client._version import __version__

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
