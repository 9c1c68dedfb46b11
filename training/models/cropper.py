"""From the recording's image to the core's: standardise, crop around the gaze, resize, append behaviour."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse
from training.errors import ConfigError
from training.models.modules_by_mouse import ModulesByMouse
from training.models.shifter import Shifter

__all__ = ["Cropper", "Standardizer"]


class Standardizer(nn.Module):
    """Standardises the inputs of one mouse, from the recording's own units.

    Image and pupil centre: (x - mean) / std. Behaviour: x / std, not centred. The identity if statistics are unknown.
    """

    image_mean: Tensor
    image_std: Tensor
    behavior_std: Tensor
    pupil_mean: Tensor
    pupil_std: Tensor

    def __init__(self, mouse: Mouse) -> None:
        super().__init__()
        image, behavior, pupil = (_mean_std(s) for s in (mouse.images, mouse.behavior, mouse.pupil_center))
        for name, value, shape in (
            ("image_mean", image[0], (-1, 1, 1)),  # (C, 1, 1)
            ("image_std", image[1], (-1, 1, 1)),
            ("behavior_std", behavior[1], (-1,)),
            ("pupil_mean", pupil[0], (-1,)),
            ("pupil_std", pupil[1], (-1,)),
        ):
            # Not part of the state dict: checkpoints store the mouse's statistics separately.
            self.register_buffer(name, torch.from_numpy(value.astype(np.float32)).reshape(shape), persistent=False)

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            (image - self.image_mean) / self.image_std,
            behavior / self.behavior_std,
            self.pupil(pupil_center),
        )

    def pupil(self, pupil_center: Tensor) -> Tensor:
        """Standardises the pupil centre, (B, 2) -> (B, 2)."""
        return (pupil_center - self.pupil_mean) / self.pupil_std


def _mean_std(statistics: InputStatistics | None) -> tuple[np.ndarray, np.ndarray]:
    if statistics is None:
        return np.zeros(1), np.ones(1)
    return statistics.mean, statistics.std


class Cropper(nn.Module):
    """Standardised image (B, C, H, W) -> the core's image (B, C', h, w), for every mouse (paper, section 5).

    The crop samples a grid from -alpha to alpha, shifted by the image shifter, with nearest neighbour and
    `align_corners`. Nearest neighbour gives the shifter no gradient, so in training the backward pass is bilinear
    (straight-through).
    """

    HIDDEN = 10
    grid: Tensor

    def __init__(self, *, config: ModelConfig, mice: list[Mouse]) -> None:
        super().__init__()
        cropper = config.cropper
        shapes = {mouse.image_shape for mouse in mice}
        if len(shapes) != 1:
            raise ConfigError(
                "the mice of one twin must share an image shape",
                got={mouse.mouse_id: mouse.image_shape for mouse in mice},
                hint="Train mice of Dataset S and Dataset F separately.",
            )
        channels, height, width = shapes.pop()
        n_behavior = mice[0].n_behavior  # of all of them: `Twin` checks it
        self.grayscale = cropper.grayscale
        self.size = cropper.size
        self.append_behavior = config.behavior == "channels"
        self.crop = cropper.crop
        crop_height, crop_width = int(height * self.crop), int(width * self.crop)
        if min(crop_height, crop_width) < 1:
            raise ConfigError(f"cropper.crop {self.crop} leaves nothing of an image of {height}x{width}")
        # Without crop and shifter, sampling would be the identity.
        self.samples = self.crop < 1 or cropper.shifter != "none"
        rows = torch.linspace(-self.crop, self.crop, crop_height)
        columns = torch.linspace(-self.crop, self.crop, crop_width)
        self.register_buffer(
            "grid", torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None], persistent=False
        )
        self.uses_behavior = cropper.shifter == "behavior_and_pupil_center"
        self.shifters: ModulesByMouse | None = None
        if cropper.shifter != "none":
            self.shifters = ModulesByMouse(
                {
                    mouse.mouse_id: Shifter(
                        n_inputs=2 + (n_behavior if self.uses_behavior else 0), hidden=self.HIDDEN, scale=1 - self.crop
                    )
                    for mouse in mice
                }
            )
        self.n_appended = n_behavior if self.append_behavior else 0
        out_channels = (1 if self.grayscale else channels) + self.n_appended
        self.image_size, self.crop_size = (height, width), (crop_height, crop_width)
        self.output_shape = (out_channels, *(self.size or self.crop_size))

    def forward(self, image: Tensor, behavior: Tensor, pupil_center: Tensor, mouse_id: str) -> Tensor:
        if self.grayscale:
            image = image.mean(dim=1, keepdim=True)
        if self.samples:
            image = self._sample(image, behavior, pupil_center, mouse_id)
        if self.size is not None and tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, size=self.size, mode="bilinear", align_corners=False, antialias=False)
        if self.append_behavior:
            planes = behavior[:, :, None, None].expand(-1, -1, *image.shape[-2:])
            image = torch.cat([image, planes], dim=1)
        return image

    def _sample(self, image: Tensor, behavior: Tensor, pupil_center: Tensor, mouse_id: str) -> Tensor:
        grid = self.grid.expand(image.shape[0], -1, -1, -1)  # (B, h, w, 2), x and y
        if self.shifters is not None:
            grid = grid + self._shift(behavior, pupil_center, mouse_id)[:, None, None, :]
        nearest = F.grid_sample(image, grid, mode="nearest", align_corners=True)
        if not self.training or self.shifters is None:
            return nearest
        smooth = F.grid_sample(image, grid, mode="bilinear", align_corners=True)
        return nearest.detach() + smooth - smooth.detach()

    def _shift(self, behavior: Tensor, pupil_center: Tensor, mouse_id: str) -> Tensor:
        """(B, 2), x and y, of which 2 are the image's width and height."""
        assert self.shifters is not None
        shift: Tensor = self.shifters[mouse_id](
            torch.cat([behavior, pupil_center], dim=1) if self.uses_behavior else pupil_center
        )
        return shift

    def source(self, places: Tensor, behavior: Tensor, pupil_center: Tensor, mouse_id: str) -> Tensor:
        """Places (N, 2), x and y in pixels of the core's image, to those in the recording's image.

        In both, the middle of the top left pixel is (0, 0). behavior (1, 3) and pupil_center (1, 2), standardised.
        """
        pixels = places.new_tensor(self.image_size[::-1])
        cropped = places.new_tensor(self.crop_size[::-1])
        if self.size is not None:  # interpolate counts from the corners of pixels
            places = (places + 0.5) * cropped / places.new_tensor(self.size[::-1]) - 0.5
        if not self.samples:
            return places
        points = self.crop * (2 * places / (cropped - 1).clamp(min=1) - 1)  # of the grid; of one point, its start
        if self.shifters is not None:
            points = points + self._shift(behavior, pupil_center, mouse_id)
        return (points + 1) / 2 * (pixels - 1)
