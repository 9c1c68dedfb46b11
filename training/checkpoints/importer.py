"""`python -m training import`: checkpoints from reference runs, Sensorium baselines and the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from training.arguments import add_output, add_recordings
from training.checkpoints.attribution import attribution
from training.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    check_shapes,
    library_versions,
    now,
    outline,
    save_checkpoint,
    source_commit,
)
from training.checkpoints.ensemble import ENSEMBLE, Ensemble, load_ensemble, save_ensemble
from training.checkpoints.reference_runs import read_reference_run, rename_reference_keys
from training.checkpoints.run_files import RunFiles, find_runs, run_of
from training.checkpoints.sensorium_weights import IMAGE_SIZE, infer_sensorium_config, sensorium_mice
from training.checkpoints.weights_file import Weights, read_weights
from training.config import BehaviorMLPConfig, CNNConfig, ModelConfig
from training.data.layout import checked_mouse_id
from training.data.mouse import Mouse, open_recordings
from training.errors import CheckpointError, ConfigError, RecordingError
from training.file_kinds import broken_link
from training.files import check_output, writing
from training.models import Twin
from training.replacing import replacing
from training.tables import counted

__all__ = ["add_arguments", "import_members", "import_weights", "run"]

CoreKind = Literal["cnn", "ln"]


def import_weights(source: str | Path, *, recordings: Sequence[Mouse] = (), core: CoreKind | None = None) -> Checkpoint:
    """Converts one run or file, as `import_members` does.

    Raises:
        CheckpointError: the source cannot be converted, or is an ensemble.
    """
    members = import_members(source, recordings=recordings, core=core)
    if len(members) > 1:
        raise CheckpointError(f"{source} has {len(members)} runs", expected="one", hint="Give the folder of one.")
    return members[0]


def import_members(
    source: str | Path, *, recordings: Sequence[Mouse] = (), core: CoreKind | None = None
) -> list[Checkpoint]:
    """Converts a run of the reference code, a Sensorium `.pth`, or `hf://OWNER/NAME[/FOLDER]`.

    Of a run, its folder, its `ckpt` folder or its `.pt` file may be given. A folder of runs that differ in their seeds
    is an ensemble.

    Args:
        recordings: the mice as recorded; without them the twin takes inputs that are already standardised.
        core: "cnn" or "ln", for `.pth` files, whose weights are the same for both; by default the file name decides.

    Returns:
        One checkpoint, or those of an ensemble's members.

    Raises:
        CheckpointError: the source cannot be converted; the message names the file, key or option.
    """
    from_hub = str(source).startswith("hf://")
    path = _from_hub(str(source)) if from_hub else Path(source)
    if path.is_dir():
        runs = find_runs(path)
        checkpoints = [_import_run(run, recordings) for run in runs]
        _check_ensemble(checkpoints, path)
        origins = [run.folder.name for run in runs]
    elif path.is_file():
        run = run_of(path)
        checkpoints = [_import_sensorium(path, recordings, core) if run is None else _import_run(run, recordings)]
        origins = [path.name]
    else:
        if (link := broken_link(path)) is not None:
            raise CheckpointError(f"{source} is {link.name}", hint=link.hint)
        raise CheckpointError(f"{source} does not exist", hint="Give a run folder, a .pth file or hf://OWNER/NAME.")
    for checkpoint, origin in zip(checkpoints, origins, strict=True):
        checkpoint.provenance["source"] = str(source) if from_hub else f"imported {origin}"
    return checkpoints


def _check_ensemble(members: Sequence[Checkpoint], folder: Path) -> None:
    """Refuses runs that are not an ensemble: of other options or other mice."""
    different = [i for i, member in enumerate(members) if member.config != members[0].config]
    others = [i for i, member in enumerate(members) if list(member.mice) != list(members[0].mice)]
    if different or others:
        raise CheckpointError(
            f"{folder} has runs of {'different options' if different else 'other mice'}, which are no ensemble",
            got=f"runs 0 and {(different or others)[0]}, by name",
            expected="the folder of one run, or of runs that differ in their seeds",
            hint="Import each by itself.",
        )


def _import_run(run: RunFiles, recordings: Sequence[Mouse]) -> Checkpoint:
    reference = read_reference_run(run.options)
    weights = read_weights(run.weights, str(run.weights))
    return _build(
        weights,
        config=_infer_b_mlp(reference.config, weights.state),
        mice=reference.mice,
        image_shape=reference.image_shape,
        recordings=recordings,
    )


def _infer_b_mlp(config: ModelConfig, state: dict[str, Tensor]) -> ModelConfig:
    """Reads the B-MLP's hidden width from the weights: it depends on the version of the reference code."""
    found = [key for key in state if re.search(r"\.b[-_]mlp\..*0\.weight$", key) and state[key].ndim]
    if config.behavior != "b_mlp" or not found or not hasattr(config.core, "dim"):
        return config
    hidden = state[found[0]].shape[0]
    b_mlp: BehaviorMLPConfig = config.b_mlp.model_copy(
        update={"hidden": "full" if hidden == config.core.dim and hidden != config.core.dim // 2 else "half"}
    )
    return config.model_copy(update={"b_mlp": b_mlp})


def _import_sensorium(path: Path, recordings: Sequence[Mouse], core: CoreKind | None) -> Checkpoint:
    weights = read_weights(path, path.name)
    if any(key.startswith(("readouts.", "core.patch_embedding.", "core.transformer.")) for key in weights.state):
        raise CheckpointError(
            f"{path.name} has the weights of a V1T run, but not its options",
            expected="args.yaml beside it, or beside its ckpt folder",
            hint="Give the folder of the run.",
        )
    mice = sensorium_mice(weights.state, path.name)
    if core is None:
        core = "ln" if re.search(r"(^|[^a-z])ln([^a-z]|$)", path.stem.lower()) else "cnn"
    config = infer_sensorium_config(weights.state, core=core, name=path.name)
    return _build(weights, config=config, mice=mice, image_shape=(1, *IMAGE_SIZE), recordings=recordings)


def _build(
    weights: Weights,
    *,
    config: ModelConfig,
    mice: dict[str, tuple[str, str | None, int]],
    image_shape: tuple[int, int, int],
    recordings: Sequence[Mouse],
) -> Checkpoint:
    name, state = weights.name, weights.state
    values = sum(tensor.numel() for tensor in state.values())
    recorded = {mouse.mouse_id: mouse for mouse in recordings}
    ours: list[Mouse] = []
    for theirs, (mouse_id, data_key, n_neurons) in mice.items():
        try:
            mouse_id = checked_mouse_id(mouse_id)
        except RecordingError as error:
            raise CheckpointError(f"{name}: {error.message}", got=error.got, expected=error.expected) from error
        if mouse_id in (mouse.mouse_id for mouse in ours):
            raise CheckpointError(f"{name} has mouse {mouse_id!r} twice", got=list(mice))
        mouse = recorded.get(mouse_id)
        if mouse is None:
            if recorded:
                raise CheckpointError(
                    f"no recording of mouse {mouse_id!r} was given",
                    got=sorted(recorded),
                    expected=mouse_id,
                    hint=f"Give a recording of every mouse (--recordings {mouse_id}=PATH names it), or none: then the "
                    "twin takes standardised inputs.",
                )
            if n_neurons > values:
                raise CheckpointError(
                    f"{name}: mouse {theirs!r} has too many neurons for its weights",
                    got=n_neurons,
                    expected=f"at most {values:,}, the number of weights",
                )
            mouse = Mouse.without_recording(mouse_id, image_shape, n_neurons, data_key)
        if mouse.n_neurons != n_neurons:
            raise CheckpointError(
                f"{name} was trained on another recording of mouse {mouse_id!r}",
                got=f"{mouse.n_neurons} neurons recorded",
                expected=f"{n_neurons} neurons in the weights",
            )
        ours.append(mouse)
    try:
        empty = outline(config, ours, state)
    except CheckpointError as error:
        raise CheckpointError(f"{name} lacks weights that its options require: {error.message}") from error
    except (ConfigError, RuntimeError, MemoryError, OverflowError, ValueError, TypeError, KeyError) as error:
        first_line = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{name}: no model can be built from its options: {first_line}") from error
    mouse_ids = {theirs: mouse.mouse_id for theirs, mouse in zip(mice, ours, strict=True)}
    _check_grid(weights, empty.cropper.grid, config.cropper.crop)
    ours_by_key = rename_reference_keys(dict(state), config=config, mouse_ids=mouse_ids, name=name)
    check_shapes(empty, ours_by_key, name)
    twin = Twin(config, ours)
    _check_grid(weights, twin.cropper.grid, config.cropper.crop)
    twin.load_state_dict(ours_by_key, strict=False)
    provenance: dict[str, Any] = {"created": now(), "commit": source_commit(), "versions": library_versions()}
    if weights.notes:
        provenance["notes"] = weights.notes
    provenance |= attribution(state)
    return Checkpoint(twin=twin.eval(), provenance=provenance)


def _check_grid(weights: Weights, grid: Tensor, crop: float) -> None:
    """Compares the cropper's grid in the weights with that of the options; on the meta device, only its shape.

    It is the only trace of these options in the weights: nothing else shows how the image is resized.
    """
    theirs = weights.state.get("image_cropper.grid")
    if theirs is None:
        return
    atol = max(1e-5, weights.precision)
    if theirs.shape != grid.shape or not (grid.is_meta or torch.allclose(theirs, grid, atol=atol)):
        raise CheckpointError(
            f"{weights.name}: image_cropper.grid does not fit the options input_shape and center_crop",
            got=f"{tuple(theirs.shape)} up to {theirs.abs().amax().item() if theirs.numel() else 0:.3g}",
            expected=f"{tuple(grid.shape)} up to {crop:.3g}",
        )


def _from_hub(url: str) -> Path:
    """A snapshot of a repository on the Hugging Face hub, from the local cache or downloaded."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:/(.+))?", url)
    if found is None or ".." in url.split("/"):
        raise CheckpointError(
            f"{url} is not a repository on the hub", expected="hf://OWNER/NAME or hf://OWNER/NAME/FOLDER"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{url} needs huggingface_hub, which cannot be imported: {error}",
            hint="`pip install huggingface_hub` installs it.",
        ) from None
    repository, folder = found.groups()
    patterns = [f"{folder}/**" if folder else "**", "args.yaml", "ckpt/*"]
    try:
        root = Path(snapshot_download(repository, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{url} cannot be fetched: {str(error).splitlines()[0]}") from error
    return _only_run(root / folder if folder else root, url)


def _only_run(root: Path, url: str) -> Path:
    runs = [root] if (root / "args.yaml").is_file() else sorted(path.parent for path in root.rglob("args.yaml"))
    if len(runs) != 1:
        raise CheckpointError(
            f"{url} has {counted(len(runs), 'run')}",
            got=[str(run.relative_to(root)) for run in runs][:8],
            expected="one",
            hint="Choose one with hf://OWNER/NAME/FOLDER.",
        )
    return runs[0]


EXAMPLES = """examples:
  python -m training import path/to/run --recordings path/to/static* --output runs/imported
  python -m training import sensorium_cnn.pth --output runs/cnn
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "source",
        help="a run of the reference code (its folder), a folder of an ensemble's runs, a Sensorium .pth, or hf://OWNER/NAME",
    )
    add_output(parser, "folder to write", metavar="CHECKPOINT", force=True)
    recordings = "recordings of the mice, for statistics and neuron ids; without them inputs must be standardised"
    add_recordings(parser, recordings, required=False)
    core = "for .pth files: with (cnn) or without (ln) nonlinearities (default: from the file name)"
    parser.add_argument("--core", choices=["cnn", "ln"], help=core)


def run(args: argparse.Namespace) -> int:
    check_output(args.output, force=args.force, markers=(CONFIG, ENSEMBLE))
    recordings = [
        Mouse.from_recording(recording) for recording in open_recordings(args.recordings, nan_trials=args.nan_trials)
    ]
    checkpoints = import_members(args.source, recordings=recordings, core=args.core)
    with writing(args.output), replacing(args.output) as folder:
        if len(checkpoints) > 1:
            save_ensemble(folder, Ensemble(checkpoints))
        else:
            save_checkpoint(folder, checkpoints[0])
        members = load_ensemble([folder]).members
    config = members[0].config
    linear = " (no nonlinearities)" if isinstance(config.core, CNNConfig) and config.core.kind == "ln" else ""
    ensemble = f", an ensemble of {len(members)} members" if len(members) > 1 else ""
    print(f"{args.source} -> {args.output}: core {config.core.kind}{linear}, behavior {config.behavior}{ensemble}")
    for note in dict.fromkeys(note for member in members for note in member.provenance.get("notes", [])):
        print(f"  note: {note}")
    for mouse in members[0].mice.values():
        units = "standardised inputs" if mouse.standardized_inputs else "inputs in the recording's units"
        neurons = counted(mouse.n_neurons, "neuron")
        print(f"  mouse {mouse.mouse_id}: {neurons}, image {mouse.image_shape}, {units}")
    return 0
