"""Whom to cite for a model, and the licence of weights that are published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

__all__ = ["NOT_STATED", "SENSORIUM_CITATION", "V1T_CITATION", "attribution"]

V1T_CITATION = (
    "Li, Cornacchia, Rochefort, Onken. V1T: large-scale mouse V1 response prediction using a Vision Transformer. "
    "TMLR 2023."
)
SENSORIUM_CITATION = (
    "Willeke et al. The Sensorium competition on predicting large-scale mouse primary visual cortex activity. "
    "arXiv:2206.08666, 2022."
)
NOT_STATED = "not stated"
SENSORIUM_LICENCE = "MIT (Sensorium GitHub Contributors)"

_FIRST_LAYER = "core.features.layer0.conv.weight"  # of Sensorium's weights
# SHA-256 of the first layer's weights -> the published file.
_PUBLISHED = {
    "7699c8db9d6fc647074da358503310ca9e4059f35c8bd6225d5638f1aae80ce8": "sensorium_sota_model.pth",
    "b0fc0f34ade3b3b801ed6bced2e84f7bcb1096c01f60ce9fb9a882d20c0f4fdd": "sensorium_ln_model.pth",
    "a26282adabfb0b1ce05c380ce7b6e0c4c98ae7496cba0f4dbe69c9e8d57dace7": "sensorium_p_sota_model.pth",
    "32438bed21991d6d2deb7c91252ed5e200308f3b3b863225ac19e5dae0f20ab9": "sensorium_p_ln_model.pth",
}


def attribution(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The citation of imported weights, by the names that their project gives them, and the licence where it is known.

    Weights that somebody trained with a project's code have no licence that we know.
    """
    if _FIRST_LAYER not in state or "image_cropper.grid" in state:  # runs of V1T's code have CNNs, too
        return {"citation": V1T_CITATION}
    first = state[_FIRST_LAYER].detach().cpu().float().contiguous().numpy()
    published = hashlib.sha256(first.tobytes()).hexdigest() in _PUBLISHED
    return {"citation": SENSORIUM_CITATION, **({"licence": SENSORIUM_LICENCE} if published else {})}
