"""Predictions for recordings without behaviour, such as mouse S0 of the competition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.checkpoints.ensemble import Ensemble
from training.data.recordings import Recording

__all__ = ["predictor_for"]


class _AtTrainingMean(nn.Module):
    """An ensemble for which some inputs are fixed at the mouse's training mean."""

    def __init__(self, ensemble: Ensemble, means: dict[str, Tensor]) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.means = means

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        given = {"behavior": behavior, "pupil_center": pupil_center}
        given |= {name: mean.to(image.device).expand(len(image), -1) for name, mean in self.means.items()}
        return self.ensemble(mouse_id, image, **given)


def predictor_for(ensemble: Ensemble, recording: Recording) -> tuple[nn.Module, str]:
    """The module that predicts this recording's trials, and a sentence on the inputs that it is given.

    Inputs that the twin uses but the recording lacks are set to the mean over the training trials, which the twin
    knows. Zeros would not do: behaviour is not centred, so zero is not its average.
    """
    used = [name for name in ensemble.uses() if name != "image"]
    if not used:
        return ensemble, "predicted from images alone: the twin uses no other input"
    recorded = {"behavior": recording.has_behavior, "pupil_center": recording.has_pupil_center}
    missing = [name for name in used if not recorded[name]]
    if not missing:
        return ensemble, f"predicted from images, {' and '.join(used)} as recorded"
    mouse = ensemble.mice[recording.mouse_id]
    means: dict[str, Tensor] = {}
    for name in missing:
        statistics = mouse.behavior if name == "behavior" else mouse.pupil_center
        assert statistics is not None  # a twin of a mouse without them uses neither, or takes standardised inputs
        means[name] = torch.from_numpy(statistics.mean)
    values = ", ".join(f"{name} ({', '.join(f'{value:.4g}' for value in mean)})" for name, mean in means.items())
    return _AtTrainingMean(ensemble, means), f"not in the recording, so set to the training mean: {values}"
