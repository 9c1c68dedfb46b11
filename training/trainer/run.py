"""`python -m training train`: a run trains the members of an ensemble in one folder, and can be resumed.

run.json                 what is trained, on which data
member-0/ member-1/ ...  checkpoint/, log.csv, state.pt
members.json             written when all members are trained: their validation scores, and which are kept

To resume an interrupted run, run the same command again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.arguments import add_device, add_options, add_output, add_recordings
from training.checkpoints.checkpoint import CHECKPOINT, load_checkpoint, source_commit
from training.checkpoints.ensemble import MEMBERS, RUN, member_checkpoints
from training.config import PRESETS, ModelConfig, parse_config, parse_options, parse_training, with_options
from training.data.mouse import by_mouse, open_recordings
from training.errors import CheckpointError, ConfigError
from training.files import write_atomically, writing
from training.ray_pool import add_ray
from training.safe_yaml import load_yaml
from training.tables import counted
from training.trainer.advice import for_small_recordings, next_commands
from training.trainer.dry_run import describe_run
from training.trainer.hardware import Hardware
from training.trainer.loop import check_trials
from training.trainer.members import member_folder, train_members
from training.trainer.readout_start.start import check_start
from training.trainer.run_spec import RunSpec
from training.trainer.transfer import take_core, transfer_config

__all__ = ["add_arguments", "claim", "run", "train_ensemble"]

SCORES = "validation_single_trial_correlation"  # in `members.json`


def train_ensemble(spec: RunSpec, folder: Path, *, ray: str | None = None) -> list[Path]:
    """Trains the members of a run, or resumes it; returns the checkpoints of those that are kept.

    Args:
        ray: the address of a Ray cluster that trains the members.

    Raises:
        CheckpointError: the folder holds another run.
        ConfigError, RecordingError, ScoringError: the run cannot be trained; nothing was written.
    """
    check_trials(spec)
    twin = spec.twin()
    check_start(twin, spec.training)
    for core in spec.cores:
        take_core(twin, core)
    claim(folder, spec.identity())
    scores = train_members(spec, folder, ray=ray)
    kept = sorted(sorted(range(spec.members), key=lambda i: -scores[i])[: spec.keep])
    with writing(folder / MEMBERS):
        write_atomically(folder / MEMBERS, json.dumps({SCORES: scores, "kept": kept}, indent=2).encode())
    return [member_folder(folder, i) / CHECKPOINT for i in kept]


def claim(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Writes `run.json`, or checks that the folder already belongs to this run.

    Raises:
        CheckpointError: the folder holds something else, or cannot be written.
    """
    path = folder / RUN
    if path.exists():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}", hint="Give another --output.") from error
        if different := [key for key, value in wanted.items() if found.get(key) != value]:
            raise CheckpointError(
                f"{folder} holds another run: its {' and '.join(different)} differ",
                hint="Give the same options to resume it, or another --output.",
            )
        return
    # A first write that was killed leaves only a partial file.
    if folder.exists() and any(not found.match(".*.partial") for found in folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not a run", hint="Give another --output.")
    with writing(f"run {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**wanted, "commit": source_commit()}, indent=2).encode())


EXAMPLES = """examples:
  python -m training train --recordings data --output runs/v1t --device cuda --precision bf16 --dry-run
  python -m training train --recordings data --output runs/v1t --members 10 --keep 5 --parallel 2
  python -m training train --recordings data --output runs/v1t --members 10 --ray auto
  python -m training train --recordings new --output runs/new --core runs/v1t --freeze-core

To resume an interrupted run, run the same command again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_recordings(parser, "recordings (folders or zips in the Sensorium layout), or folders of them")
    add_output(parser, "folder of the run", metavar="RUN")
    parser.add_argument("--model", choices=sorted(PRESETS), help="system of the paper's Table 1 (default: v1t)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a model configuration, instead of --model")
    core = "start from the core of a checkpoint, with its model; with a run, from its members' cores in turn"
    parser.add_argument("--core", type=Path, metavar="CHECKPOINT", help=core)
    parser.add_argument(
        "--freeze-core", action="store_true", help="do not train that core: fits a new mouse in minutes"
    )
    add_options(
        parser, "options of the model (core.patch_stride=4) or of training (training.max_epochs=20); docs/models.md"
    )
    parser.add_argument("--members", type=int, help="number of members of the ensemble (default: 1, or one per core)")
    parser.add_argument("--keep", type=int, help="keep this many members, the best by validation (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first member; the next one has seed + 1")
    parser.add_argument("--parallel", type=int, default=1, help="members to train at the same time (default: 1)")
    add_ray(parser, "members")
    add_device(parser)
    devices = "number of devices that share each update (default: 1)"
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=devices)
    precision = "precision of the core (default: fp32)"
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help=precision)
    parser.add_argument("--compile", action="store_true", help="compile the core with torch.compile")
    deterministic = "the same seed gives the same weights bit for bit (on a CPU, with the same number of threads)"
    parser.add_argument("--deterministic", action="store_true", help=deterministic)
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard, in each member's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure a few updates, print memory and time, and train nothing"
    )


def run(args: argparse.Namespace) -> int:
    spec = _spec(args)
    suggestion = for_small_recordings(spec)
    if args.dry_run:
        print(describe_run(spec))
        if suggestion is not None:
            print(suggestion)
        return 0
    if suggestion is not None:
        print(suggestion)
    try:
        kept = train_ensemble(spec, args.output, ray=args.ray)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Every finished epoch is kept in {args.output}; run the same command again to resume.")
        return 130
    scores = json.loads((args.output / MEMBERS).read_text(encoding="utf-8"))[SCORES]
    what = "score (negative loss)" if spec.training.monitor == "loss" else "single-trial correlation"
    print(f"{args.output}: kept {len(kept)} of {counted(spec.members, 'member')}")
    print(f"validation {what}: {', '.join(f'{score:.4f}' for score in scores)}")
    given = ["--recordings", *map(str, args.recordings)]
    given += ["--nan-trials", args.nan_trials] if args.nan_trials != "refuse" else []
    print("next:", *next_commands(args.output, given, list(spec.recordings.values())), sep="\n  ")
    return 0


def _spec(args: argparse.Namespace) -> RunSpec:
    hardware = Hardware.model_validate({name: getattr(args, name) for name in Hardware.model_fields})
    if args.ray is None:
        hardware.resolved()  # refuses a missing device before any work
    elif args.parallel > 1:
        raise ConfigError("--parallel is for one machine; with --ray the cluster has room or not", got=args.parallel)
    model_options, training_options = parse_options(args.set)
    if args.core is not None and (args.model is not None or args.config is not None):
        raise ConfigError("--core brings the model with it", hint="Leave out --model and --config.")
    cores = [] if args.core is None else [load_checkpoint(path) for path in member_checkpoints([args.core])]
    if cores:
        model = transfer_config(cores[0], model_options, freeze=args.freeze_core)
    else:
        preset = PRESETS[args.model or "v1t"] if args.config is None else _read_config(args.config)
        model = with_options(preset, model_options)
    return RunSpec(
        model=model,
        training=parse_training(training_options),
        recordings=by_mouse(open_recordings(args.recordings, nan_trials=args.nan_trials)),
        seed=args.seed,
        members=max(1, len(cores)) if args.members is None else args.members,
        keep=args.keep,
        cores=cores,
        freeze_core=args.freeze_core,
        hardware=hardware,
        parallel=args.parallel,
        tensorboard=args.tensorboard,
    )


def _read_config(path: Path) -> ModelConfig:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path} is not YAML of options: {error}") from error
    return parse_config(content)
