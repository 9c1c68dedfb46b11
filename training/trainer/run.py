"""A training run: the members of an ensemble, one after another, in one folder that can be resumed.

run.json                 what is trained, on which data; the same command goes on where it was
member-0/ member-1/ ...  checkpoint/, log.csv, state.pt
members.json             when all are trained: validation scores, and which members are kept
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from training.checkpoints.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, source_commit
from training.checkpoints.ensemble import MEMBERS, RUN, member_checkpoints
from training.config import PRESETS, ModelConfig, TrainingConfig, parse_config, with_options
from training.data.mouse import Mouse, open_recordings
from training.data.recordings import Recording
from training.errors import CheckpointError, ConfigError
from training.files import write_atomically
from training.models import Twin
from training.trainer.dry_run import describe_run
from training.trainer.hardware import Hardware, device_named
from training.trainer.loop import check_trials
from training.trainer.members import Member, train_members
from training.trainer.transfer import take_core, transfer_config

__all__ = [
    "add_arguments",
    "checked_training",
    "device_named",
    "parse_options",
    "run",
    "train_ensemble",
]


def train_ensemble(
    config: ModelConfig,
    training: TrainingConfig,
    recordings: Sequence[Recording],
    folder: Path,
    *,
    members: int = 1,
    keep: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    hardware: Hardware | None = None,
    parallel: int = 1,
    tensorboard: bool = False,
    cores: Sequence[Checkpoint] = (),
    freeze_core: bool = False,
) -> list[Path]:
    """Trains members with seeds `seed`, `seed + 1`, ...; returns the checkpoints of the best `keep` by validation.

    With `cores`, members start from those in turn; frozen, a core stays as it is and the rest is trained. So many
    members as `parallel` says are trained side by side.

    Raises:
        CheckpointError: the folder holds another run.
    """
    keep = members if keep is None else keep
    if not 1 <= keep <= members:
        raise ConfigError("cannot keep that many members", got=keep, expected=f"1 to {members}")
    by_mouse = {recording.mouse_id: recording for recording in recordings}
    # Refuses what does not fit, before work.
    check_trials(by_mouse, training)
    twin = Twin(config, [Mouse.from_recording(recording) for recording in recordings])
    for core in cores:
        take_core(twin, core)
    if freeze_core and not cores:
        raise ConfigError("there is no core to freeze", hint="Give a checkpoint: --core CHECKPOINT --freeze-core.")
    origin = {"weights": [core.weights_hash for core in cores], "frozen": freeze_core} if cores else None
    _claim(folder, config, training, by_mouse, seed, origin)
    jobs = [
        Member(
            config,
            training,
            by_mouse,
            folder / f"member-{i}",
            seed=seed + i,
            label=f"member {i + 1}/{members}",
            hardware=hardware or Hardware(device=str(device or "cpu")),
            core=cores[i % len(cores)] if cores else None,
            freeze_core=freeze_core,
            tensorboard=tensorboard,
        )
        for i in range(members)
    ]
    scores = train_members(jobs, parallel=parallel)
    kept = sorted(range(members), key=lambda i: -scores[i])[:keep]
    content = {"validation_single_trial_correlation": scores, "kept": sorted(kept)}
    write_atomically(folder / MEMBERS, json.dumps(content, indent=2).encode())
    return [folder / f"member-{i}" / CHECKPOINT for i in sorted(kept)]


def _claim(
    folder: Path,
    config: ModelConfig,
    training: TrainingConfig,
    recordings: dict[str, Recording],
    seed: int,
    core: dict[str, Any] | None,
) -> None:
    """Makes the folder this run's own, or checks that it is."""
    wanted = {
        "config": config.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "data_hashes": {mouse_id: recording.data_hash for mouse_id, recording in recordings.items()},
        "seed": seed,
        "core": core,
    }
    path = folder / RUN
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key, value in wanted.items() if there.get(key) != value]
        if different:
            raise CheckpointError(
                f"{folder} holds another run: its {' and '.join(different)} differ",
                hint="Give the same options to go on with it, or another --output.",
            )
        return
    if folder.exists() and any(not there.match(".*.partial") for there in folder.iterdir()):  # of a killed first write
        raise CheckpointError(f"{folder} exists and is no run", hint="Give another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**wanted, "commit": source_commit()}, indent=2).encode())


EXAMPLES = """examples:
  python -m training train --recordings data --output runs/v1t --device cuda --precision bf16 --dry-run
  python -m training train --recordings data --output runs/v1t --members 10 --keep 5 --parallel 2
  python -m training train --recordings new --output runs/new --core runs/v1t --freeze-core
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--recordings",
        nargs="+",
        required=True,
        type=Path,
        metavar="DIR",
        help="recordings (folders or zips in the Sensorium layout), or folders of them",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--model", choices=sorted(PRESETS), help="system of the paper (default: v1t)")
    parser.add_argument("--config", type=Path, metavar="YAML", help="a model configuration, in place of --model")
    parser.add_argument(
        "--core",
        type=Path,
        metavar="CHECKPOINT",
        help="start from the core of a checkpoint, or from those of a run's members in turn; it brings the model",
    )
    parser.add_argument(
        "--freeze-core", action="store_true", help="leave that core as it is: fits a new mouse in minutes"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the model (core.patch_stride=4) or of training (training.max_epochs=20); docs/models.md",
    )
    parser.add_argument("--members", type=int, help="members of the ensemble (default: 1, or one per core)")
    parser.add_argument("--keep", type=int, help="keep the best by validation (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the first member; the next takes seed + 1")
    parser.add_argument("--parallel", type=int, default=1, help="members trained side by side (default: 1)")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a GPU where there is one (default: cpu)"
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices that share each update (default: 1)"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the core (default: fp32)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the core with torch.compile")
    parser.add_argument(
        "--deterministic", action="store_true", help="same seed, same weights, bit for bit (on a CPU, same threads)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="log to TensorBoard, too, in each member's folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure some updates, say memory and time, and train nothing"
    )


def run(args: argparse.Namespace) -> int:
    hardware = Hardware(
        device=args.device,
        devices=args.devices,
        precision=args.precision,
        compile=args.compile,
        deterministic=args.deterministic,
    )
    hardware.resolved()  # refuses what is not at hand, before work
    model_options, training_options = parse_options(args.set)
    cores: list[Checkpoint] = []
    if args.core is not None:
        if args.model is not None or args.config is not None:
            raise ConfigError("--core brings the model with it", hint="Leave out --model and --config.")
        cores = [load_checkpoint(path) for path in member_checkpoints([args.core])]
        config = transfer_config(cores[0], model_options, freeze=args.freeze_core)
    else:
        config = PRESETS[args.model or "v1t"] if args.config is None else _read_config(args.config)
        config = with_options(config, model_options)
    training = checked_training(training_options)
    members = args.members if args.members is not None else max(1, len(cores))
    if members < 1:
        raise ConfigError("an ensemble needs at least one member", got=members)
    recordings = open_recordings(args.recordings)
    if args.dry_run:
        by_mouse = {recording.mouse_id: recording for recording in recordings}
        core = cores[0] if cores else None
        print(
            describe_run(
                config,
                training,
                by_mouse,
                hardware,
                members=members,
                seed=args.seed,
                core=core,
                freeze_core=args.freeze_core,
            )
        )
        return 0
    try:
        kept = train_ensemble(
            config,
            training,
            recordings,
            args.output,
            members=members,
            keep=args.keep,
            seed=args.seed,
            hardware=hardware,
            parallel=args.parallel,
            tensorboard=args.tensorboard,
            cores=cores,
            freeze_core=args.freeze_core,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. Every finished epoch is kept in {args.output}: the same command goes on from there.")
        return 130
    print(f"{args.output}: kept {len(kept)} of {members} members")
    return 0


def checked_training(options: dict[str, Any]) -> TrainingConfig:
    """How to train, from options as they were typed.

    Raises:
        ConfigError: names the option and what is wrong with it.
    """
    try:
        return TrainingConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"training.{where}: {first['msg']}", got=first["input"]) from error


def _read_config(path: Path) -> ModelConfig:
    try:
        return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is no YAML: {error}") from error


def parse_options(pairs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model and of training, from OPTION=VALUE pairs; values are YAML."""
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("an option is given as OPTION=VALUE", got=pair, expected="such as core.patch_stride=4")
        target, name = (training, name.removeprefix("training.")) if name.startswith("training.") else (model, name)
        try:
            target[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the value of {name} cannot be read", got=value, expected="such as 4 or pupil_center"
            ) from error
    return model, training
