"""The files of a run of the reference code, from whichever of its folders or files is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.errors import CheckpointError
from training.tables import counted

__all__ = ["RunFiles", "find_runs", "run_of"]

OPTIONS = "args.yaml"
STATE = "model_state.pt"
_WEIGHTS = (".pt", ".pth")


@dataclass(frozen=True)
class RunFiles:
    """A run: its folder, its options (`args.yaml`) and its weights (`ckpt/model_state.pt`)."""

    folder: Path
    options: Path
    weights: Path


def find_runs(folder: Path) -> list[RunFiles]:
    """The run of a run folder or of its `ckpt` folder, or the runs in a folder of several, by name.

    Raises:
        CheckpointError: the folder has none; the message says what it has, and what to give instead.
    """
    folder = folder.resolve() if folder.name in ("", ".", "..") else folder
    for run in (folder, folder.parent):
        if (run / OPTIONS).is_file() and (run == folder or folder.name == "ckpt"):
            return [RunFiles(run, run / OPTIONS, _weights_of(run))]
    children = sorted(child for child in folder.iterdir() if (child / OPTIONS).is_file())
    if children:
        return [RunFiles(child, child / OPTIONS, _weights_of(child)) for child in children]
    if any((folder / name).exists() for name in ("config.json", "run.json", "ensemble.json")):
        raise CheckpointError(
            f"{folder} is a checkpoint or run of this project, which needs no import",
            hint=f"Run `python -m training export {folder}`.",
        )
    below = sorted({path.parent for path in folder.glob(f"*/*/{OPTIONS}")})
    files = sorted(path for place in (folder, folder / "ckpt") for path in place.glob("*") if path.suffix in _WEIGHTS)
    if below:
        hint = "Give one of them: " + ", ".join(map(str, below[:4])) + "."
    elif files:
        hint = f"Of a run, its {OPTIONS} is missing. Of Sensorium baselines, give one file, such as {files[0]}."
    else:
        hint = None
    raise CheckpointError(
        f"{folder} is not a run of the reference code",
        got=sorted(path.name for path in folder.iterdir())[:8],
        expected=f"{OPTIONS} and ckpt/{STATE}",
        hint=hint,
    )


def run_of(weights: Path) -> RunFiles | None:
    """The run that a file of weights belongs to: the one whose options are beside it, or beside its `ckpt` folder."""
    folder = weights.absolute().parent
    places = [folder, folder.parent] if folder.name == "ckpt" else [folder]
    run = next((place for place in places if (place / OPTIONS).is_file()), None)
    return RunFiles(run, run / OPTIONS, weights) if run is not None else None


def _weights_of(run: Path) -> Path:
    """`ckpt/model_state.pt`, or the only file of weights in `ckpt` or in the run itself."""
    if (usual := run / "ckpt" / STATE).exists() or usual.is_symlink():
        return usual
    found = sorted(path for place in (run / "ckpt", run) for path in place.glob("*") if path.suffix in _WEIGHTS)
    if len(found) != 1:
        raise CheckpointError(
            f"{run} is not a run of the reference code: it has {counted(len(found), 'file')} of weights",
            got=[str(path.relative_to(run)) for path in found] or sorted(path.name for path in run.iterdir())[:8],
            expected=f"{OPTIONS} and ckpt/{STATE}",
            hint="Give the file to import." if found else "Copy the whole folder of the run.",
        )
    return found[0]
