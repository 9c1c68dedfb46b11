"""The Sensorium 2022 baselines: `.pth` state dicts of CNN and LN models, configured by their shapes."""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from training.config import ModelConfig, parse_config
from training.data.layout import SENSORIUM_BEHAVIOR, paper_mouse_id
from training.errors import CheckpointError

__all__ = ["IMAGE_SIZE", "infer_sensorium_config", "sensorium_mice"]

# The competition's data loaders scale images to this size.
IMAGE_SIZE = (36, 64)
N_BEHAVIOR = len(SENSORIUM_BEHAVIOR)


def sensorium_mice(state: dict[str, Tensor], name: str) -> dict[str, tuple[str, str | None, int]]:
    """Data key -> (mouse_id, data_key, n_neurons).

    Raises:
        CheckpointError: these are not the weights of a Sensorium baseline.
    """
    mice: dict[str, tuple[str, str | None, int]] = {}
    for key, tensor in state.items():
        if found := re.fullmatch(r"readout\.([^.]+)\._features", key):
            data_key = found.group(1)
            _check_ndim(key, tensor, 4, name)
            mice[data_key] = (paper_mouse_id(data_key), data_key, tensor.shape[-1])
    if not mice or "core.features.layer0.conv.weight" not in state:
        raise CheckpointError(
            f"{name} is not a Sensorium baseline",
            got=f"keys such as {', '.join(list(state)[:3])}" if state else "no keys",
            expected="core.features.layer0.conv.weight and readout.<data key>._features",
        )
    return mice


def infer_sensorium_config(state: dict[str, Tensor], *, core: Literal["cnn", "ln"], name: str) -> ModelConfig:
    """The configuration of the model with these weights.

    Args:
        core: with ("cnn") or without ("ln") nonlinearities, which the weights do not show.

    Raises:
        CheckpointError: a shape does not occur in a baseline.
    """
    first = state["core.features.layer0.conv.weight"]
    _check_ndim("core.features.layer0.conv.weight", first, 4, name)
    channels, in_channels, kernel, _ = first.shape
    layers = {int(found.group(1)) for key in state if (found := re.match(r"core\.features\.layer(\d+)\.", key))}
    spatial = state.get("core.features.layer1.ds_conv.spatial_conv.weight")
    if spatial is not None:
        _check_ndim("core.features.layer1.ds_conv.spatial_conv.weight", spatial, 4, name)
    if in_channels not in (1, 1 + N_BEHAVIOR):
        raise CheckpointError(
            f"{name}: the first layer takes {in_channels} channels",
            expected="1 (image) or 4 (image, pupil dilation, its derivative, running speed)",
        )
    readout = next(iter(sensorium_mice(state, name)))
    source_grid = state.get(f"readout.{readout}.source_grid")
    if source_grid is not None:
        _check_ndim(f"readout.{readout}.source_grid", source_grid, 2, name)
    return parse_config(
        {
            "core": {
                "kind": core,
                "n_layers": len(layers),
                "channels": channels,
                "input_kernel": kernel,
                "hidden_kernel": spatial.shape[-1] if spatial is not None else 7,
                "convolution_bias": "core.features.layer1.ds_conv.in_depth_conv.bias" in state,
            },
            "behavior": "none" if in_channels == 1 else "channels",
            "cropper": {"size": None},
            "shifter": any(key.startswith("shifter.") for key in state),
            "readout": {
                "position": "free" if source_grid is None else "network",
                "coordinates": "xyz" if source_grid is not None and source_grid.shape[1] == 3 else "xy",
            },
        }
    )


def _check_ndim(key: str, tensor: Tensor, ndim: int, name: str) -> None:
    if tensor.ndim != ndim:
        shape = tuple(tensor.shape)
        raise CheckpointError(f"{name}: wrong shape of {key}", got=shape, expected=f"{ndim} axes")
