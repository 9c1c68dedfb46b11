"""Transfer of a trained core to new mice: its weights, and the feature maps of a frozen core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from training.checkpoints.checkpoint import Checkpoint
from training.config import ModelConfig, with_options
from training.data.batches import batches_of
from training.data.layout import behavior_text
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.models.twin import response_from

__all__ = ["FeatureMaps", "take_core", "transfer_config"]

# Options of a core that may differ from its checkpoint's: they do not change the shape or meaning of its weights.
_REGULARIZATION = {"l1", "laplace", "dropout", "patch_dropout", "block_dropout", "stochastic_depth"}


def transfer_config(checkpoint: Checkpoint, options: Mapping[str, Any], *, freeze: bool) -> ModelConfig:
    """The configuration of a twin with this core: the checkpoint's, with other options for the other parts.

    Raises:
        ConfigError: an option would change the core.
    """
    config = with_options(checkpoint.config, dict(options))
    for name in options:
        part, _, option = name.partition(".")
        fixed = part in ("behavior", "b_mlp", "cropper") or (
            part == "core" and (freeze or option not in _REGULARIZATION)
        )
        if fixed and with_options(checkpoint.config, {name: options[name]}) != checkpoint.config:
            raise ConfigError(
                f"{name} is an option of the core and comes from its checkpoint",
                got=options[name],
                hint="Options of readout and shifter can be set"
                + (", and without --freeze-core those of the core's regularisation." if freeze else "."),
            )
    return config


def take_core(twin: Twin, checkpoint: Checkpoint) -> None:
    """Copies the checkpoint's core into a twin of other mice; B-MLPs per mouse stay as initialised.

    Raises:
        ConfigError: the core does not fit the images or behaviour of these mice, or this model.
    """
    if twin.cropper.output_shape != checkpoint.twin.cropper.output_shape:
        raise ConfigError(
            "the core does not fit the images of these recordings",
            got=f"{twin.cropper.output_shape} after cropping and resizing",
            expected=checkpoint.twin.cropper.output_shape,
            hint="To transfer a core from Dataset F to Dataset S, train it with cropper.grayscale.",
        )
    ours, theirs = ({m.behavior_channels for m in one.mice.values()}.pop() for one in (twin, checkpoint.twin))
    if twin.config.behavior != "none" and ours != theirs:
        raise ConfigError(
            "the core was trained with other behaviour channels than these recordings have",
            got=behavior_text(ours),
            expected=behavior_text(theirs),
            hint="Write the core's channels, in its order, into recordings of their own; or train a core on these.",
        )
    own = set(twin.own_core_parameters())
    their_core, our_core = checkpoint.twin.core.state_dict(), twin.core.state_dict()
    if wrong := [name for name in our_core if name not in own and _shape(their_core, name) != _shape(our_core, name)]:
        raise ConfigError(
            f"the core's {wrong[0]} does not fit this model",
            got=_shape(their_core, wrong[0]),
            expected=_shape(our_core, wrong[0]),
        )
    twin.core.load_state_dict({name: our_core[name] if name in own else their_core[name] for name in our_core})


class FeatureMaps:
    """Feature maps (B, D, h, w) of trials, computed once, to train readouts on a frozen core."""

    def __init__(self, maps: dict[str, Tensor], rows: dict[str, np.ndarray]) -> None:
        self._maps = maps
        self._rows = rows

    @classmethod
    def of(
        cls, twin: Twin, recordings: Mapping[str, Recording], *, tiers: Sequence[str], batch_size: int = 16
    ) -> FeatureMaps | None:
        """The maps of all trials of these tiers; None if they change in training or do not fit into memory."""
        if not twin.core_is_frozen or twin.cropper.shifters is not None or twin.own_core_parameters():
            return None
        trials = {
            mouse_id: np.concatenate([recording.tier(tier).indices for tier in tiers])
            for mouse_id, recording in recordings.items()
        }
        n_bytes = 4 * sum(map(len, trials.values())) * int(np.prod(twin.core.output_shape))
        if n_bytes > _free_memory(next(twin.parameters()).device) // 2:
            return None
        return cls.of_trials(twin, recordings, trials, batch_size=batch_size)

    @classmethod
    def of_trials(
        cls,
        twin: Twin,
        recordings: Mapping[str, Recording],
        trials: Mapping[str, np.ndarray],
        *,
        batch_size: int = 16,
    ) -> FeatureMaps:
        """The maps of these trials, by mouse and file number, as the core is now."""
        device = next(twin.parameters()).device
        maps, rows = {}, {}
        was_training = twin.training
        twin.eval()
        with torch.no_grad():
            for mouse_id, indices in trials.items():
                maps[mouse_id] = torch.empty(len(indices), *twin.core.output_shape, device=device)
                rows[mouse_id] = np.full(recordings[mouse_id].n_trials, -1)
                rows[mouse_id][indices] = np.arange(len(indices))
                progress = f"feature maps of mouse {mouse_id}"
                for part, (*inputs, _) in batches_of(
                    recordings[mouse_id], indices, device, size=batch_size, progress=progress
                ):
                    image, behavior, _ = twin.stem(mouse_id, *inputs)
                    row = torch.from_numpy(rows[mouse_id][part]).to(device)
                    maps[mouse_id][row] = twin.core(image, behavior, twin.mouse_index(mouse_id, image))
        twin.train(was_training)
        return cls(maps, rows)

    def __call__(self, mouse_id: str, indices: np.ndarray) -> Tensor:
        """(B, D, h, w), of trials by file number."""
        maps = self._maps[mouse_id]
        return maps[torch.from_numpy(self._rows[mouse_id][indices]).to(maps.device)]

    def at(self, mouse_id: str, indices: np.ndarray, place: tuple[int, int]) -> Tensor:
        """(B, D), the features at one row and column of the maps."""
        maps = self._maps[mouse_id]
        return maps[:, :, place[0], place[1]][torch.from_numpy(self._rows[mouse_id][indices]).to(maps.device)]

    def predict(self, twin: Twin, mouse_id: str, indices: np.ndarray, pupil_center: Tensor) -> Tensor:
        """The twin's standardised responses to these trials, (B, N)."""
        pupil_center = twin.standardizer(mouse_id).pupil(pupil_center)
        return response_from(twin.read_out(mouse_id, self(mouse_id, indices), pupil_center))


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
