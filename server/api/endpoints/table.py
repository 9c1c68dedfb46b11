"""The table of endpoints, from which the routes and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs import schemas
from server.api.codecs.query import MouseQuery, NeuronQuery, NoQuery
from server.api.codecs.streaming import EVENTS
from server.api.endpoints import admin, mice, pages
from server.api.endpoints import inference_protocol as v2
from server.api.endpoints.predict import attention, gradient, predict
from server.api.endpoints.receptive_fields import receptive_fields
from server.serving.context import Context

__all__ = ["ENDPOINTS", "BodyType", "Endpoint", "Handler"]

Handler: TypeAlias = Callable[[Request, Context], Awaitable[Response]]
BodyType: TypeAlias = type[BaseModel] | None  # None: bytes


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One route.

    Attributes:
        name: the operationId in OpenAPI; None: left out of the document.
        handler: None where BentoML answers.
        summary: of the operation.
        label: of the metrics, where several paths share one; by default the path.
        described: the reply, in words; by default the summary.
        query: type of the query parameters.
        request: media type -> type of the body.
        reply: media type -> types of the body, where one of several.
        reply_headers: as V1T-Reply beside .npy, or the length of the JSON before binary tensors.
        timeout: what X-Request-Timeout bounds; None: the header is not documented.
        statuses: of the error replies.
        errors: type of the error body.
        key: which key opens the route.
    """

    path: str
    name: str | None
    handler: Handler | None
    summary: str
    method: Literal["GET", "POST"] = "GET"
    label: str | None = None
    described: str | None = None
    query: type[NoQuery] = NoQuery
    request: dict[str, BodyType] | None = None
    reply: dict[str, Sequence[BodyType]] | None = None
    reply_headers: Literal["V1T-Reply", "Inference-Header-Content-Length"] | None = None
    timeout: str | None = None
    statuses: tuple[int, ...] = (401, 429, 503)
    errors: type[BaseModel] = schemas.ErrorReply
    key: Literal["api", "admin", "none"] = "api"


_JSON, _NPY, _FORM, _BINARY = "application/json", "application/x-npy", "multipart/form-data", "application/octet-stream"
_NPY_REPLY = "JSON, or with `Accept: application/x-npy`"
_REPLY_TIMEOUT = "seconds until the answer is of no use; the server's own limit holds too"
_QUESTION_ERRORS = (400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 431, 503, 504)


def _question(
    path: str, handler: Handler, summary: str, described: str, form: type[BaseModel], *types: type[BaseModel]
) -> Endpoint:
    """A question in JSON or as a form, answered in JSON or .npy.

    Args:
        types: of the request in JSON, then of the reply in JSON, where one of several.
    """
    request, *replies = types
    return Endpoint(
        path=path,
        name=path[1:],
        handler=handler,
        summary=summary,
        method="POST",
        described=described,
        request={_JSON: request, _FORM: form},
        reply={_JSON: replies, _NPY: [None]},
        reply_headers="V1T-Reply",
        timeout=_REPLY_TIMEOUT,
        statuses=_QUESTION_ERRORS,
    )


def _v2(path: str, name: str, handler: Handler, summary: str, **more: Any) -> Endpoint:
    """A route of the Open Inference Protocol v2; the reply is any JSON, unless `more` says."""
    options: dict[str, Any] = {"reply": {_JSON: []}, "errors": schemas.ProtocolError} | more
    return Endpoint(path=f"/v2{path}", name=f"v2_{name}", handler=handler, summary=summary, **options)


def _v2_about_a_model(suffix: str, version: str) -> list[Endpoint]:
    """The protocol's routes about the newest version of a model, or about a version that is named."""
    path, statuses = "/models/{model}" + version, (401, 404, 429, 503)

    def row(name: str, last: str, handler: Handler, summary: str, **more: Any) -> Endpoint:
        options = {"statuses": statuses, "label": "/v2/models/{model}" + last} | more
        return _v2(path + last, name + suffix, handler, summary, **options)

    return [
        row("model_metadata", "", v2.model_metadata, "Its tensors", reply={_JSON: [schemas.ModelMetadata]}),
        row("model_ready", "/ready", v2.model_ready, "200 once it can answer"),
        row(
            "infer",
            "/infer",
            v2.infer,
            "Responses and their spread; JSON, or JSON with binary tensors after it",
            method="POST",
            request={_JSON: schemas.InferRequest, _BINARY: None},
            reply={_JSON: [schemas.InferReply], _BINARY: [None]},
            reply_headers="Inference-Header-Content-Length",
            timeout=_REPLY_TIMEOUT,
            statuses=(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503, 504),
        ),
        row("model_config", "/config", v2.model_config, "Its configuration, in Triton's form"),
        row("statistics", "/stats", v2.model_statistics, "Its counts and times"),
    ]


ENDPOINTS: tuple[Endpoint, ...] = (
    _question(
        "/predict",
        predict,
        "The responses of a mouse's neurons to images",
        f"{_NPY_REPLY} an array (B, n), with spread (2, B, n); of several mice one after another, as numpy.load reads "
        "them from one file, in the order of the header's mice",
        schemas.PredictForm,
        schemas.PredictRequest,
        schemas.PredictReply,
        schemas.PredictMiceReply,
    ),
    Endpoint(
        path="/receptive_fields",
        name="receptive_fields",
        handler=receptive_fields,
        summary="Receptive fields: responses to noise, weighted by it and summed",
        method="POST",
        described="events, each a line of JSON and as many bytes as its `bytes` says: `progress` (`done` of `total` "
        "images), `alive`, one `part`, and at last `end`, or `error` with the error body. The part is four .npy one "
        "after another: the sum of response times noise (n, h, w) float32, of the noise (h, w), of the responses (n) "
        "and of their squares (n) float64. The notes of V1T-Reply are about the first images; those in the line of the "
        "part are about all",
        request={_JSON: schemas.NoiseRequest},
        reply={EVENTS: [None]},
        reply_headers="V1T-Reply",
        timeout="seconds until the whole stream is of no use",
        statuses=_QUESTION_ERRORS,
    ),
    _question(
        "/gradient",
        gradient,
        "How a weighted sum of responses changes with image, behaviour and pupil centre",
        f"{_NPY_REPLY} four arrays one after another, as numpy.load reads them from one file: the gradient with "
        "respect to the image (B, C, H, W), the responses (B, n), the gradient with respect to behaviour (B, K), and "
        "to the pupil centre (B, 2)",
        schemas.GradientForm,
        schemas.GradientRequest,
        schemas.GradientReply,
    ),
    _question(
        "/attention",
        attention,
        "Where the twin's core looks: attention rollout",
        f"{_NPY_REPLY} an array (B, M, h, w)",
        schemas.AttentionForm,
        schemas.AttentionRequest,
        schemas.AttentionReply,
    ),
    Endpoint(
        path="/mice",
        name="mice",
        handler=mice.mice,
        summary="Every mouse that can be asked",
        reply={_JSON: [schemas.MiceReply]},
    ),
    Endpoint(
        path="/mice/{mouse}",
        name="mouse",
        handler=mice.mouse,
        summary="One mouse and its training statistics",
        query=MouseQuery,
        reply={_JSON: [schemas.MouseDetail]},
        statuses=(401, 404, 422, 429, 503),
    ),
    Endpoint(
        path="/mice/{mouse}/neurons",
        name="neurons",
        handler=mice.neurons,
        summary="Its neurons, by position and score",
        query=NeuronQuery,
        reply={_JSON: [schemas.NeuronsReply]},
        statuses=(401, 404, 422, 429, 503),
    ),
    Endpoint(
        path="/admin/reload",
        name="reload",
        handler=admin.reload,
        summary="Takes in bundles that changed on disk, beside what is served; 409 names what is refused",
        method="POST",
        reply={_JSON: [schemas.ReloadReply]},
        statuses=(401, 404, 409, 429, 503, 504),
        key="admin",
    ),
    Endpoint(path="/livez", name="livez", handler=None, summary="200 while the process runs", statuses=(), key="none"),
    Endpoint(
        path="/readyz",
        name="readyz",
        handler=None,
        summary="200 once every bundle is loaded and warm",
        statuses=(503,),
        key="none",
    ),
    Endpoint(path="/metrics", name="metrics", handler=pages.metrics, summary="Prometheus metrics", statuses=(401, 429)),
    Endpoint(path="/", name=None, handler=pages.index, summary="The explorer", key="none"),
    Endpoint(path="/docs", name=None, handler=pages.docs_page, summary="The API, to read and to try", key="none"),
    Endpoint(
        path="/explorer/{path:path}",
        name=None,
        handler=pages.explorer_file,
        summary="A file of the explorer",
        label="/explorer",
        key="none",
    ),
    _v2("", "server_metadata", v2.server_metadata, "The server and its extensions"),
    _v2("/health/live", "server_live", v2.server_live, "200 while the process runs", statuses=(), key="none"),
    _v2("/health/ready", "server_ready", v2.server_ready, "200 once it can answer", statuses=(503,), key="none"),
    _v2("/models/stats", "all_statistics", v2.all_statistics, "Counts and times of all models"),
    _v2("/repository/index", "repository_index", v2.repository_index, "All models", method="POST"),
    *_v2_about_a_model("", ""),
    *_v2_about_a_model("_version", "/versions/{version}"),
)
