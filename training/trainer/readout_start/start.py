"""Where readouts start (`training.readout_start`), and what is kept of it in the folder of a member."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.config import TrainingConfig
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.files import write_atomically, writing
from training.models import Twin
from training.trainer.readout_start.energy_maps import EnergyMaps, check_maps, energy_maps, peaks
from training.trainer.readout_start.positions import fit_network
from training.trainer.readout_start.regression import fit_first_readout
from training.trainer.transfer import FeatureMaps

__all__ = ["START", "StartPositions", "check_start", "load_start", "start_from_trials", "start_readouts"]

START = "readout_start.npz"  # in the folder of a member


@dataclass(frozen=True, eq=False)
class StartPositions:
    """Where the neurons of one mouse looked before the first update.

    Attributes:
        positions: (N, 2) `mu`, x and y in [-1, 1].
        clearness: (N,) of their energy maps.
        clear: (N,) bool.
    """

    positions: np.ndarray
    clearness: np.ndarray
    clear: np.ndarray


def check_start(twin: Twin, training: TrainingConfig) -> None:
    """Checks, before any work, that readouts can start as `training.readout_start` says.

    Raises:
        ConfigError: the core does not fit.
    """
    if training.readout_start == "trials":
        check_maps(twin)


def start_readouts(
    twin: Twin,
    maps: FeatureMaps | None,
    recordings: Mapping[str, Recording],
    training: TrainingConfig,
    folder: Path,
    *,
    label: str = "",
) -> str:
    """Moves every mouse's readout to its start; returns the start: "random", "trials" or "regression".

    Args:
        folder: the member's, for the positions of a start from the trials.
        label: the member's name in progress lines.

    Raises:
        ConfigError: a regression is required, but there are no maps to fit on.
    """
    start = training.readout_start
    if start == "auto":
        start = "regression" if maps is not None else "random" if twin.core.spacing is None else "trials"
    if start == "regression":
        if maps is None:
            raise ConfigError(
                "training.readout_start 'regression' needs a frozen core whose feature maps are fixed and fit into "
                "memory",
                hint="Give --core CHECKPOINT --freeze-core, or set training.readout_start to 'auto'.",
            )
        for recording in recordings.values():
            fit_first_readout(twin, maps, recording)
    elif start == "trials":
        found = {mouse_id: start_from_trials(twin, recording) for mouse_id, recording in recordings.items()}
        _save(folder / START, twin, found)
        clear = ", ".join(f"{mouse_id} {int(one.clear.sum())} of {len(one.clear)}" for mouse_id, one in found.items())
        tqdm.write(f"{label} readouts start from the training trials; neurons with a clear receptive field: {clear}")
    return start


def start_from_trials(twin: Twin, recording: Recording) -> EnergyMaps:
    """Moves one mouse's readout positions to where the training trials say that its neurons look.

    Crop and positions start without a shift with the gaze, so that maps and positions agree.
    """
    readout = twin.readout(recording.mouse_id)
    twin.stop_shifts(recording.mouse_id)
    found = energy_maps(twin, recording)
    if readout.position_network is not None:
        fit_network(readout, found.maps, found.clearness)
    else:
        with torch.no_grad():
            readout.free_mu.copy_(_free_positions(found))
    return found


def _free_positions(found: EnergyMaps) -> torch.Tensor:
    """(N, 2) the maps' peaks; those that are not above chance are moved towards the mean of the clear ones."""
    places = peaks(found.maps)
    trust = (found.clearness / max(found.chance, 1e-12)).clamp(max=1)[:, None]  # (N, 1)
    clear = found.clear if bool(found.clear.any()) else found.clearness >= 0
    middle = places[clear].mean(0)
    return torch.lerp(middle, places, trust)


def _save(path: Path, twin: Twin, found: Mapping[str, EnergyMaps]) -> None:
    arrays = {}
    for mouse_id, one in found.items():
        arrays[f"{mouse_id}.positions"] = twin.readout(mouse_id).mu.detach().cpu().numpy()
        arrays[f"{mouse_id}.clearness"] = one.clearness.cpu().numpy()
        arrays[f"{mouse_id}.clear"] = one.clear.cpu().numpy()
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    with writing(path):
        write_atomically(path, content.getvalue())


def load_start(member: Path) -> dict[str, StartPositions]:
    """mouse_id -> where its neurons looked before the first update; empty unless they started from the trials.

    Args:
        member: the folder of a member, as in a run.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = member / START
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            mice = [name.removesuffix(".positions") for name in arrays if name.endswith(".positions")]
            return {
                mouse_id: StartPositions(
                    *(arrays[f"{mouse_id}.{name}"] for name in ("positions", "clearness", "clear"))
                )
                for mouse_id in mice
            }
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
