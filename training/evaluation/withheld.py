"""How a twin is asked about trials whose behaviour is not in the recording (mouse S0 of the competition)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.checkpoints.ensemble import Ensemble
from training.data.recordings import Recording

__all__ = ["how_asked"]


class _AtTrainingMean(nn.Module):
    """The ensemble, with some inputs at the mouse's training mean whatever is given."""

    def __init__(self, ensemble: Ensemble, means: dict[str, Tensor]) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.means = means

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        given = {"behavior": behavior, "pupil_center": pupil_center}
        given |= {name: mean.to(image.device).expand(len(image), -1) for name, mean in self.means.items()}
        response: Tensor = self.ensemble(mouse_id, image, **given)
        return response


def how_asked(ensemble: Ensemble, recording: Recording) -> tuple[nn.Module, str]:
    """What predicts this recording's trials, and a sentence on which inputs it is given.

    Zeros are not the average behaviour (behaviour is not centred), so what the twin uses and the recording lacks is set
    to the mean over the training trials that the twin knows.
    """
    used = [name for name in ensemble.uses() if name != "image"]
    if not used:
        return ensemble, "asked with images alone: the twin uses nothing else"
    there = {"behavior": recording.has_behavior, "pupil_center": recording.has_pupil_center}
    missing = [name for name in used if not there[name]]
    if not missing:
        return ensemble, f"asked with images, {' and '.join(used)} as recorded"
    mouse = ensemble.mice[recording.mouse_id]
    means: dict[str, Tensor] = {}
    for name in missing:
        statistics = mouse.behavior if name == "behavior" else mouse.pupil_center
        assert statistics is not None  # a twin of a mouse without them uses neither, or takes standardised inputs
        means[name] = torch.from_numpy(statistics.mean)
    values = ", ".join(f"{name} ({', '.join(f'{value:.4g}' for value in mean)})" for name, mean in means.items())
    return _AtTrainingMean(ensemble, means), f"not in the recording, so asked at the training mean: {values}"
