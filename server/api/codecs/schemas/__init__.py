"""What travels over HTTP, as types: they become the OpenAPI document, and say which fields a request may have."""

from server.api.codecs.schemas.answers import (
    AttentionReply,
    Derivatives,
    GradientReply,
    ModelInfo,
    MousePrediction,
    Note,
    PredictMiceReply,
    PredictReply,
)
from server.api.codecs.schemas.error_replies import (
    ErrorBody,
    ErrorReply,
    ProtocolError,
)
from server.api.codecs.schemas.fields import (
    Resize,
    State,
    Units,
)
from server.api.codecs.schemas.inference_protocol import (
    InferParameters,
    InferReply,
    InferRequest,
    InputParameters,
    InputTensor,
    ModelMetadata,
    OutputParameters,
    RequestedOutput,
    Tensor,
    TensorMetadata,
)
from server.api.codecs.schemas.mice import (
    Distilled,
    MiceReply,
    MouseDetail,
    MouseSummary,
    NeuronsReply,
)
from server.api.codecs.schemas.questions import (
    AttentionForm,
    AttentionRequest,
    GradientForm,
    GradientRequest,
    ImageFile,
    NoiseRequest,
    PredictForm,
    PredictRequest,
    SensoriumBehavior,
)
from server.api.codecs.schemas.reload import (
    ReloadReply,
    ServedBundle,
)

__all__ = [
    "API_VERSION",
    "AttentionForm",
    "AttentionReply",
    "AttentionRequest",
    "Derivatives",
    "Distilled",
    "ErrorBody",
    "ErrorReply",
    "GradientForm",
    "GradientReply",
    "GradientRequest",
    "ImageFile",
    "InferParameters",
    "InferReply",
    "InferRequest",
    "InputParameters",
    "InputTensor",
    "MiceReply",
    "ModelInfo",
    "ModelMetadata",
    "MouseDetail",
    "MousePrediction",
    "MouseSummary",
    "NeuronsReply",
    "NoiseRequest",
    "Note",
    "OutputParameters",
    "PredictForm",
    "PredictMiceReply",
    "PredictReply",
    "PredictRequest",
    "ProtocolError",
    "ReloadReply",
    "RequestedOutput",
    "Resize",
    "SensoriumBehavior",
    "ServedBundle",
    "State",
    "Tensor",
    "TensorMetadata",
    "Units",
]

API_VERSION = "1.0.0"
