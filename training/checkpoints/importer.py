"""`python -m training import`: checkpoints from reference runs, Sensorium baselines and the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from training.arguments import add_output, add_recordings
from training.checkpoints.checkpoint import (
    Checkpoint,
    library_versions,
    load_checkpoint,
    now,
    save_checkpoint,
    source_commit,
)
from training.checkpoints.reference_runs import read_reference_run, rename_reference_keys
from training.checkpoints.safe_pickle import load_pickle
from training.checkpoints.sensorium_weights import IMAGE_SIZE, infer_sensorium_config, sensorium_mice
from training.config import BehaviorMLPConfig, CNNConfig, ModelConfig
from training.data.mouse import Mouse, open_recordings
from training.errors import CheckpointError
from training.files import check_output
from training.models import Twin
from training.tables import counted

__all__ = ["add_arguments", "import_weights", "run"]

CoreKind = Literal["cnn", "ln"]


def import_weights(source: str | Path, *, recordings: Sequence[Mouse] = (), core: CoreKind | None = None) -> Checkpoint:
    """Converts a run folder of the reference code, a Sensorium `.pth`, or `hf://OWNER/NAME[/FOLDER]`.

    Args:
        recordings: the mice as recorded; without them the twin takes inputs that are already standardised.
        core: "cnn" or "ln", for `.pth` files, whose weights are the same for both; by default the file name decides.

    Raises:
        CheckpointError: the source cannot be converted; the message names the file, key or option.
    """
    path = _from_hub(str(source)) if str(source).startswith("hf://") else Path(source)
    if path.is_dir():
        checkpoint = _import_run(path, recordings)
    elif path.is_file():
        checkpoint = _import_sensorium(path, recordings, core)
    else:
        raise CheckpointError(f"{source} does not exist", hint="Give a run folder, a .pth file or hf://OWNER/NAME.")
    checkpoint.provenance["source"] = str(source) if str(source).startswith("hf://") else f"imported {path.name}"
    return checkpoint


def _import_run(folder: Path, recordings: Sequence[Mouse]) -> Checkpoint:
    weights = folder / "ckpt" / "model_state.pt"
    if not (folder / "args.yaml").is_file() or not weights.is_file():
        raise CheckpointError(
            f"{folder} is not a run of the reference code",
            got=sorted(path.name for path in folder.iterdir())[:8],
            expected="args.yaml and ckpt/model_state.pt",
        )
    reference = read_reference_run(folder)
    content = load_pickle(weights)
    state = content.get("model", content.get("model_state_dict")) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{weights} has no weights", expected="a dictionary with the key 'model'")
    _check_tensors(state, str(weights))
    return _build(
        state,
        config=_infer_b_mlp(reference.config, state),
        mice=reference.mice,
        image_shape=reference.image_shape,
        recordings=recordings,
        name=str(weights),
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
    state = load_pickle(path)
    if not isinstance(state, dict | OrderedDict):
        raise CheckpointError(f"{path.name} has no weights", got=type(state).__name__, expected="a state dict")
    _check_tensors(state, path.name)
    mice = sensorium_mice(state, path.name)
    if core is None:
        core = "ln" if re.search(r"(^|[^a-z])ln([^a-z]|$)", path.stem.lower()) else "cnn"
    config = infer_sensorium_config(state, core=core, name=path.name)
    return _build(state, config=config, mice=mice, image_shape=(1, *IMAGE_SIZE), recordings=recordings, name=path.name)


def _check_tensors(state: dict[Any, Any], name: str) -> None:
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{name}: unknown key {key!r}", expected="a string")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name}: key {key} is not a tensor", got=type(tensor).__name__)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise CheckpointError(
                f"{name}: key {key} is not a dense tensor of real numbers",
                got=f"{tensor.layout}, {tensor.dtype}, {tensor.device}",
            )


def _build(
    state: dict[str, Tensor],
    *,
    config: ModelConfig,
    mice: dict[str, tuple[str, str | None, int]],
    image_shape: tuple[int, int, int],
    recordings: Sequence[Mouse],
    name: str,
) -> Checkpoint:
    recorded = {mouse.mouse_id: mouse for mouse in recordings}
    ours: list[Mouse] = []
    for theirs, (mouse_id, data_key, n_neurons) in mice.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", mouse_id):  # it becomes the name of a module and of a file
            raise CheckpointError(
                f"{name}: the name of mouse {theirs!r} is invalid", expected="letters, digits, - and _"
            )
        if mouse_id in (mouse.mouse_id for mouse in ours):
            raise CheckpointError(f"{name} has mouse {mouse_id!r} twice", got=list(mice))
        mouse = recorded.get(mouse_id)
        if mouse is None:
            if recorded:
                raise CheckpointError(
                    f"no recording of mouse {mouse_id!r} was given",
                    got=sorted(recorded),
                    expected=mouse_id,
                    hint="Give a recording of every mouse, or none: then the twin takes standardised inputs.",
                )
            try:
                mouse = Mouse.without_recording(mouse_id, image_shape, n_neurons, data_key)
            except (MemoryError, OverflowError, ValueError) as error:
                raise CheckpointError(f"{name}: mouse {theirs!r} has too many neurons", got=n_neurons) from error
        if mouse.n_neurons != n_neurons:
            raise CheckpointError(
                f"{name} was trained on another recording of mouse {mouse_id!r}",
                got=f"{mouse.n_neurons} neurons recorded",
                expected=f"{n_neurons} neurons in the weights",
            )
        ours.append(mouse)
    try:
        twin = Twin(config, ours)
    except (RuntimeError, MemoryError, OverflowError, ValueError, TypeError, KeyError) as error:
        # For example sizes that do not fit into memory, or a mouse named like a method of torch's modules.
        first_line = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{name}: no model can be built from its options: {first_line}") from error
    grid = state.get("image_cropper.grid", twin.cropper.grid)
    if grid.shape != twin.cropper.grid.shape or not torch.allclose(grid.float(), twin.cropper.grid, atol=1e-5):
        # The only trace of these options in the weights: nothing else shows how the image is resized.
        raise CheckpointError(
            f"{name}: image_cropper.grid does not fit the options input_shape and center_crop",
            got=f"{tuple(grid.shape)} up to {grid.abs().amax().item() if grid.numel() else 0:.3g}",
            expected=f"{tuple(twin.cropper.grid.shape)} up to {config.cropper.crop:.3g}",
        )
    mouse_ids = {theirs: mouse_id for theirs, (mouse_id, _, _) in mice.items()}
    _load(twin, rename_reference_keys(dict(state), config=config, mouse_ids=mouse_ids, name=name), name)
    provenance: dict[str, Any] = {"created": now(), "commit": source_commit(), "versions": library_versions()}
    return Checkpoint(twin=twin.eval(), provenance=provenance)


def _load(twin: Twin, weights: dict[str, Tensor], name: str) -> None:
    expected = twin.state_dict()
    # Batch norm counts its batches, but the count has no effect, and the importer leaves it out.
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(f"{name} lacks weights that its options require", got=f"no {missing[0]}")
    for key, tensor in weights.items():
        if key not in expected:
            raise CheckpointError(f"{name} has weights that do not belong to its options", got=key)
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{name}: wrong shape of {key}",
                got=tuple(tensor.shape),
                expected=f"{tuple(expected[key].shape)}, from its options",
            )
    twin.load_state_dict(weights, strict=False)


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
    except ImportError:
        raise CheckpointError(
            f"{url} needs huggingface_hub, which is not installed",
            hint="Run `pip install huggingface_hub` and try again.",
        ) from None
    repository, folder = found.groups()
    patterns = [f"{folder}/**" if folder else "**", "args.yaml", "ckpt/*"]
    try:
        root = Path(snapshot_download(repository, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{url} cannot be fetched: {str(error).splitlines()[0]}") from error
    return _only_run(root / folder if folder else root, url)


def _only_run(root: Path, url: str) -> Path:
    if (root / "args.yaml").is_file():
        return root
    runs = sorted(path.parent for path in root.rglob("args.yaml"))
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
    parser.add_argument("source", help="a run folder of the reference code, a Sensorium .pth, or hf://OWNER/NAME")
    add_output(parser, "folder to write", metavar="CHECKPOINT", force=True)
    recordings = "recordings of the mice, for statistics and neuron ids; without them inputs must be standardised"
    add_recordings(parser, recordings, required=False)
    core = "for .pth files: with (cnn) or without (ln) nonlinearities (default: from the file name)"
    parser.add_argument("--core", choices=["cnn", "ln"], help=core)


def run(args: argparse.Namespace) -> int:
    check_output(args.output, force=args.force)
    recordings = [
        Mouse.from_recording(recording) for recording in open_recordings(args.recordings, nan_trials=args.nan_trials)
    ]
    checkpoint = import_weights(args.source, recordings=recordings, core=args.core)
    save_checkpoint(args.output, checkpoint)
    saved = load_checkpoint(args.output)
    config = saved.config
    linear = " (no nonlinearities)" if isinstance(config.core, CNNConfig) and config.core.kind == "ln" else ""
    print(f"{args.source} -> {args.output}: core {config.core.kind}{linear}, behavior {config.behavior}")
    for mouse in saved.mice.values():
        units = "standardised inputs" if mouse.standardized_inputs else "inputs in the recording's units"
        neurons = counted(mouse.n_neurons, "neuron")
        print(f"  mouse {mouse.mouse_id}: {neurons}, image {mouse.image_shape}, {units}")
    return 0
