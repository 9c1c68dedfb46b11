"""Where each neuron looks: a ramp that the twin's own crop and readout sample says the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.tiny_twins import tiny_config, tiny_mouse, tiny_twin

from training.config import CCTConfig, CNNConfig
from training.data.mouse import Mouse
from training.models import Twin
from training.models.image_positions import image_positions, map_positions, resting_positions
from training.models.shifter import Shifter

CROPS: dict[str, dict[str, Any]] = {
    "whole": {},
    "not resized": {"size": None},
    "crop": {"crop": 0.7, "size": None},
    "crop and resize": {"crop": 0.8, "size": (24, 40)},
    "moved by gaze": {"crop": 0.8, "shifter": "pupil_center", "size": (24, 40)},
    "moved by all": {"crop": 0.6, "shifter": "behavior_and_pupil_center", "size": None},
}


def averaged(twin: Twin, image: torch.Tensor) -> torch.Tensor:
    """The core's image (1, 1, h, w) as a feature map in which every token holds the mean of what it sees."""
    core = twin.config.core
    if isinstance(core, CNNConfig):
        return F.avg_pool2d(image, core.input_kernel, 1)
    if isinstance(core, CCTConfig):
        return F.avg_pool2d(F.avg_pool2d(F.pad(image, (3, 3, 3, 3)), core.patch_size, core.patch_stride), 3, 2, 1)
    return F.avg_pool2d(image, core.patch_size, core.patch_stride)


def sampled(twin: Twin, mouse: Mouse, image: torch.Tensor) -> torch.Tensor:
    """(N,) what the readout of each neuron samples of a standardised image (H, W)."""
    assert mouse.images is not None
    assert mouse.behavior is not None
    assert mouse.pupil_center is not None
    raw = float(mouse.images.mean[0]) + float(mouse.images.std[0]) * image[None, None]
    behavior, gaze = (torch.from_numpy(one.median)[None] for one in (mouse.behavior, mouse.pupil_center))
    cropped, _, pupil_center = twin.stem(mouse.mouse_id, raw, behavior, gaze)
    readout = twin.readout(mouse.mouse_id)
    readout.features.data, readout.bias.data = torch.ones(mouse.n_neurons, 1), torch.zeros(mouse.n_neurons)
    return twin.read_out(mouse.mouse_id, averaged(twin, cropped[:, :1]), pupil_center)[0]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("core", ["vit", "cct", "cnn"])
@torch.no_grad()
def test_a_position_is_where_the_readout_samples_a_ramp(core: str, crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The crop takes the nearest pixel; bilinear, a ramp passes it without rounding.
    exact = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda *given, mode="bilinear", **more: exact(*given, **more))
    mouse = tiny_mouse("A", n_neurons=40, image_shape=(1, 36, 64))
    cropper, readout = {"size": (18, 32), **CROPS[crop]}, {"position": "free"}
    twin = tiny_twin(tiny_config({"kind": core}, cropper=cropper, readout=readout), [mouse])
    for module in twin.modules():
        if isinstance(module, Shifter):
            for parameter in module.layers[2].parameters():
                parameter *= 0.3  # a shift that leaves neurons on the map
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(64.0), indexing="ij")
    expected = torch.stack([sampled(twin, mouse, x), sampled(twin, mouse, y)], 1)
    inside = sampled(twin, mouse, torch.ones(36, 64)) > 1 - 1e-5  # beyond the edges are zeros, which hide the ramp
    assert inside.sum() > 3
    found = image_positions(twin, "A")
    assert found is not None
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-3)
    back = map_positions(twin, "A", found)
    torch.testing.assert_close(back, resting_positions(twin, "A"), rtol=0, atol=1e-4)


def test_tokens_that_are_not_arranged_like_patches_have_no_position() -> None:
    mouse = tiny_mouse("A")
    config = tiny_config({"token_grid": "nearest_square"}, cropper={"size": (8, 26)})  # 2 x 8 patches, 4 x 4 tokens
    assert image_positions(tiny_twin(config, [mouse]), "A") is None
