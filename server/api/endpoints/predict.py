"""POST /predict, /gradient and /attention: questions about images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs.response import (
    JSON,
    Attention,
    accepted,
    attention_answer,
    gradient_answer,
    neuron_std,
    prediction_answer,
    several_mice_answer,
)
from server.api.codecs.schemas import AttentionRequest, GradientRequest, PredictRequest
from server.api.endpoints.dispatch import admit, read_questions, respond
from server.serving.context import Context
from server.serving.jobs import Work

if TYPE_CHECKING:
    from server.inference.engine import Engine, Gradient, Prediction
    from server.inference.stimulus import Stimulus

__all__ = ["attention", "gradient", "predict"]


async def predict(request: Request, context: Context) -> Response:
    """Responses of one mouse, or of several to the same images."""
    media_type = accepted(request.headers.get("accept"))
    admit(request, context)
    bundle, questions, are_several = await read_questions(request, context, PredictRequest)
    engine = await context.repository.engine(bundle)

    def encode(predictions: list[Prediction]) -> Response:
        request_id = request.state.request_id
        if are_several:
            return several_mice_answer(engine, questions, predictions, request_id).encoded(media_type)
        return prediction_answer(engine, questions[0], predictions[0], request_id).encoded(media_type)

    return await respond(request, context, engine, questions, encode, in_text=media_type == JSON)


async def gradient(request: Request, context: Context) -> Response:
    """Derivatives of a weighted sum of responses."""
    media_type = accepted(request.headers.get("accept"))
    admit(request, context)
    bundle, questions, _ = await read_questions(request, context, GradientRequest)
    (question,) = questions
    engine = await context.repository.engine(bundle)
    assert question.weights is not None
    weights = question.weights * neuron_std(engine, question) if question.units == "raw" else question.weights

    def run(engine: Engine, stimuli: Sequence[Stimulus], images: slice) -> list[Gradient]:
        (shown,) = stimuli
        given = weights[images] if weights.ndim == 2 else weights
        return [engine.gradient(shown.mouse_id, shown.image, shown.behavior, shown.pupil_center, given, shown.neurons)]

    def encode(gradients: list[Gradient]) -> Response:
        return gradient_answer(engine, question, gradients[0], request.state.request_id).encoded(media_type)

    work = Work("gradient", run, max_images=1 if engine.device == "cpu" else engine.max_batch)
    return await respond(request, context, engine, questions, encode, work, in_text=media_type == JSON)


async def attention(request: Request, context: Context) -> Response:
    """Attention rollout maps of each member."""
    media_type = accepted(request.headers.get("accept"))
    admit(request, context)
    bundle, questions, _ = await read_questions(request, context, AttentionRequest)
    engine = await context.repository.engine(bundle)

    def run(engine: Engine, stimuli: Sequence[Stimulus], images: slice) -> list[Attention]:
        (shown,) = stimuli
        maps = engine.attention_rollout(shown.mouse_id, shown.image, shown.behavior, shown.pupil_center)
        return [Attention(maps.swapaxes(0, 1))]  # (M, B, h, w) -> (B, M, h, w)

    def encode(results: list[Attention]) -> Response:
        return attention_answer(engine, questions[0], results[0], request.state.request_id).encoded(media_type)

    work = Work("attention", run, max_images=engine.max_batch)
    return await respond(request, context, engine, questions, encode, work, in_text=media_type == JSON)
