"""The graphs of a bundle, and the names of their tensors.

    graph      file per             from -> to
    stem       mouse (and member,   image (B, C, H, W), behavior (B, K), pupil_center (B, 2), in the recording's units
               if it has a shifter)  -> core_image (B, C', h, w), core_behavior (B, J), core_pupil_center (B, 2)
    core       member               core_image, core_behavior, mouse_index (B,) -> feature_map (B, rows, columns, D)
    attention  member               as the core -> attention_rollout (B, h, w), at the core's image size
    readout    mouse and member     feature_map, core_pupil_center, neurons (n,) -> pre_activation (B, n)
    ensemble   mouse                pre_activation (M, B, n) -> response (B, n), spread (B, n)

Optional graphs. To compute the core's last block only for the tokens that few neurons read:

    touched_tokens  mouse and member  core_pupil_center, neurons (n,) -> tokens (B or 1, 4 n), -1 outside the map
    token_core      member            as the core, and tokens (B, R), distinct -> feature_map, zero at other tokens

To run in half precision, on a GPU:

    half_core       member            as the core -> feature_map (B, rows, columns, W) in float16; W is D or more
    half_readout    mouse and member  as the readout, with that feature_map

For gradients, the backward pass of each graph, where d_x is d(sum of weights times responses) / dx:

    ensemble_gradient  mouse            pre_activation, weights (B, n) -> response, d_pre_activation (M, B, n)
    readout_gradient   mouse, member    as the readout, and d_pre_activation -> d_feature_map, d_core_pupil_center
    core_tape          member           as the token core (or the core) -> feature_map, and tensors named tape.*
    core_gradient      member           as the core tape, its tape.*, d_feature_map -> d_core_image, d_core_behavior
    stem_gradient      as the stem      as the stem, d_core_* -> d_image, d_behavior, d_pupil_center

For use with onnxruntime alone, one graph per mouse with everything inside:

    twin       mouse                image, behavior, pupil_center -> response (B, N)

A graph lists only the inputs that it uses: a core without behaviour has no core_behavior, and so on.

B batch, C channels, H W image, K behaviour channels, J inputs of the B-MLP, D embedding, N neurons, M members. All
floats are float32, `neurons` and `mouse_index` int64, as are `tokens`, positions in the map's rows. `neurons` are
positions 0..N-1; `neurons.npz` has the neuron ids.
"""

from __future__ import annotations

__all__ = [
    "ATTENTION_ROLLOUT",
    "BEHAVIOR",
    "CORE_BEHAVIOR",
    "CORE_IMAGE",
    "CORE_PUPIL_CENTER",
    "FEATURE_MAP",
    "FORWARD",
    "IMAGE",
    "MOUSE_INDEX",
    "NEURONS",
    "PRE_ACTIVATION",
    "PUPIL_CENTER",
    "RESPONSE",
    "SPREAD",
    "TAPE",
    "TOKENS",
    "WEIGHTS",
    "gradient_of",
]

IMAGE = "image"
BEHAVIOR = "behavior"
PUPIL_CENTER = "pupil_center"
CORE_IMAGE = "core_image"
CORE_BEHAVIOR = "core_behavior"
CORE_PUPIL_CENTER = "core_pupil_center"
MOUSE_INDEX = "mouse_index"
FEATURE_MAP = "feature_map"
NEURONS = "neurons"
PRE_ACTIVATION = "pre_activation"
RESPONSE = "response"
SPREAD = "spread"
TOKENS = "tokens"
WEIGHTS = "weights"
TAPE = "tape."  # how the names of what a forward pass keeps for the backward pass begin
ATTENTION_ROLLOUT = "attention_rollout"

# The graphs that predictions need -> the inputs that they may have, and the outputs.
FORWARD = {
    "stem": ({IMAGE, BEHAVIOR, PUPIL_CENTER}, {CORE_IMAGE, CORE_BEHAVIOR, CORE_PUPIL_CENTER}),
    "core": ({CORE_IMAGE, CORE_BEHAVIOR, MOUSE_INDEX}, {FEATURE_MAP}),
    "readout": ({FEATURE_MAP, CORE_PUPIL_CENTER, NEURONS}, {PRE_ACTIVATION}),
    "ensemble": ({PRE_ACTIVATION}, {RESPONSE, SPREAD}),
}


def gradient_of(name: str) -> str:
    """The name of the tensor that holds the derivative with respect to another."""
    return f"d_{name}"
