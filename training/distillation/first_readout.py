"""The student's first readouts: they look where the teacher's do, with a regression of its answers on their features.

The core is still random, but already its maps at the right place predict a neuron better than nothing; and the core
learns at once for readouts that look in the right place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoints.ensemble import Ensemble
from training.config import CCTConfig, CNNConfig
from training.data.batches import read_batch
from training.data.recordings import Recording
from training.models import Twin
from training.models.tokenizer import ConvolutionalTokenizer, PatchTokenizer
from training.trainer.readout_start.regression import RIDGES, Trials, fit_features
from training.trainer.transfer import FeatureMaps

__all__ = ["first_readouts", "map_span", "teacher_positions"]

TRIALS = 2000  # of each mouse, for the regression
SETTLING = 256  # of them, for the statistics of batch norms


def first_readouts(student: Twin, teacher: Ensemble, recordings: Mapping[str, Recording], *, seed: int) -> None:
    """Sets positions, features and bias of every readout; at first, positions do not jitter or shift with the gaze."""
    device = next(student.parameters()).device
    trials = {}
    for i, (mouse_id, recording) in enumerate(recordings.items()):
        rows = np.random.default_rng([seed, i]).permutation(recording.tier("train").indices)[:TRIALS]
        trials[mouse_id] = np.sort(rows)
    _settle(student, recordings, trials)
    maps = FeatureMaps.of_trials(student, recordings, trials)
    for mouse_id, recording in recordings.items():
        readout = student.readout(mouse_id)
        positions = teacher_positions(teacher, student, mouse_id)
        with torch.no_grad():
            if positions is not None:
                readout.free_mu.copy_(positions)
            readout.sigma.zero_()
            fit_features(
                readout, Trials(maps, recording, trials[mouse_id], device), RIDGES[1], student.core.output_shape[1:]
            )
        student.stop_shifts(mouse_id)


def _settle(student: Twin, recordings: Mapping[str, Recording], trials: Mapping[str, np.ndarray]) -> None:
    """Gives batch norms the statistics of the core's own maps: in training they use those of each batch."""
    norms = [module for module in student.core.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over batches
    device = next(student.parameters()).device
    student.train()
    with torch.no_grad():
        for mouse_id, recording in recordings.items():
            image, behavior, pupil_center, _ = read_batch(recording, trials[mouse_id][:SETTLING], device)
            image, behavior, _ = student.stem(mouse_id, image, behavior, pupil_center)
            student.core(image, behavior, student.mouse_index(mouse_id, image))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def teacher_positions(teacher: Ensemble, student: Twin, mouse_id: str) -> Tensor | None:
    """(N, 2) where the members' neurons look on average, as positions in the student's map.

    None if a member's map is not a map of the image (`token_grid: nearest_square`).
    """
    places = []
    for member in teacher.members:
        span = map_span(member.twin)
        if span is None:
            return None
        places.append(span[0] + (member.twin.readout(mouse_id).mu + 1) / 2 * (span[1] - span[0]))
    ours = map_span(student)
    if ours is None:
        return None
    place = torch.stack(places).mean(0)  # (N, 2) px of the core's image
    return (2 * (place - ours[0]) / (ours[1] - ours[0]).clamp(min=1e-6) - 1).clamp(-1, 1)


def map_span(twin: Twin) -> tuple[Tensor, Tensor] | None:
    """(2,) and (2,), x and y: the middles of the map's first and last column and row [px of the core's image]."""
    core, (rows, columns) = twin.config.core, twin.core.output_shape[1:]
    if isinstance(core, CNNConfig):
        first, step = (core.input_kernel - 1) / 2, 1
    elif isinstance(tokenizer := twin.core.tokenizer, PatchTokenizer | ConvolutionalTokenizer) and (
        tokenizer.grid == (rows, columns)
    ):
        first, step = (core.patch_size - 1) / 2, core.patch_stride
        if isinstance(core, CCTConfig):
            first, step = first - ConvolutionalTokenizer.PADDING, 2 * step  # max pooling takes every other place
    else:
        return None
    device = next(twin.parameters()).device
    last = [first + step * (n - 1) for n in (columns, rows)]
    return torch.tensor([first, first], device=device), torch.tensor(last, device=device)
