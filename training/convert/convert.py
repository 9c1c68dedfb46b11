"""`python -m training convert nwb|arrays|to-nwb`: recordings from NWB files and from arrays, and recordings to NWB."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.arguments import Parser, add_nan_trials
from training.convert.arrays import read_arrays
from training.convert.mapping import PRESETS, read_mapping
from training.convert.not_finite import NOT_FINITE
from training.convert.nwb_in import read_nwb
from training.convert.nwb_out import write_nwb
from training.convert.session import CONVERTED, Session
from training.convert.split import Split
from training.convert.windows import STATISTICS
from training.data.discovery import find_recordings
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError
from training.files import check_output
from training.quality.checks import quality_of
from training.tables import counted

__all__ = ["add_arguments", "run"]

NOMINAL_START = datetime(2000, 1, 1, tzinfo=UTC)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    nwb = kinds.add_parser("nwb", help="a recording from NWB files")
    nwb.add_argument("files", nargs="+", type=Path, help=".nwb files of one session; several are several planes")
    nwb.add_argument("--preset", choices=sorted(PRESETS), help="files whose structure is known (default: guess)")
    nwb.add_argument("--mapping", type=Path, metavar="YAML", help="what becomes what, in place of guesses")
    nwb.add_argument("--window-ms", nargs=2, type=float, metavar=("FROM", "TO"), help="after onset (default: 50 500)")
    nwb.add_argument("--baseline-ms", nargs=2, type=float, metavar=("FROM", "TO"), help="subtracted (default: none)")
    nwb.add_argument("--statistic", choices=STATISTICS, help="of a window's samples (default: mean)")
    arrays = kinds.add_parser("arrays", help="a recording from arrays of your own; docs/convert.md has their names")
    arrays.add_argument("set", type=Path, help="a .npz, a .zarr, or a folder of .npy and .csv files")
    arrays.add_argument("--images", type=Path, metavar="FOLDER", help="image files, in place of the array images")
    for one in (nwb, arrays):
        one.add_argument("--output", required=True, type=Path, metavar="RECORDING", help="the folder to write")
        one.add_argument("--force", action="store_true", help="replace --output if it is a converted recording")
        size = "resize images (default: keep them)"
        one.add_argument("--image-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help=size)
        not_finite = "responses with NaN or infinity (default: refuse)"
        one.add_argument("--not-finite", choices=NOT_FINITE, default="refuse", help=not_finite)
        defaults = Split()
        repeats = f"images shown at least this often are the test (default: {defaults.repeats})"
        one.add_argument("--repeats", type=int, default=defaults.repeats, help=repeats)
        share = "share of images, where most of them are repeated (default: %(default)s)"
        one.add_argument("--test", type=float, default=defaults.test, metavar="SHARE", help=f"test: {share}")
        share = "validation: share of the other images (default: %(default)s)"
        one.add_argument("--validation", type=float, default=defaults.validation, metavar="SHARE", help=share)
        one.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    out = kinds.add_parser("to-nwb", help="an NWB file from a recording")
    out.add_argument("recording", type=Path, help="a folder or .zip in the Sensorium layout")
    out.add_argument("--output", required=True, type=Path, metavar="FILE", help="the .nwb file to write")
    out.add_argument("--force", action="store_true", help="replace --output if it exists")
    start = "when the session began, such as 2022-03-01T10:00+01:00 (default: 2000-01-01, as recordings hold no times)"
    out.add_argument("--session-start", type=_moment, default=NOMINAL_START, metavar="TIME", help=start)
    add_nan_trials(out)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def run(args: argparse.Namespace) -> int:
    if args.kind == "to-nwb":
        return _to_nwb(args)
    check_output(args.output, force=args.force, markers=[CONVERTED])
    split = Split(repeats=args.repeats, test=args.test, validation=args.validation, seed=args.seed)
    size = None if args.image_size is None else (args.image_size[0], args.image_size[1])
    if args.kind == "arrays":
        if size is not None and min(size) < 8:
            raise ConfigError("--image-size is too small", got=size, expected="8 or more")
        session, notes = read_arrays(args.set, images=args.images, image_size=size, not_finite=args.not_finite)
    else:
        options: dict[str, Any] = {
            name: getattr(args, name)
            for name in ("window_ms", "baseline_ms", "statistic", "image_size")
            if getattr(args, name) is not None
        }
        mapping = read_mapping(args.preset, args.mapping, options)
        session, mapping, notes = read_nwb(args.files, mapping, not_finite=args.not_finite)
        print("mapping (write it to a file, change it, and give it as --mapping):")
        print("\n".join(f"  {line}" for line in mapping.text().splitlines()))
    session.write(args.output, split)
    return _report(args.output, session, notes)


def _report(output: Path, session: Session, notes: list[str]) -> int:
    """Opens what was written, as training will, and prints what is wrong with it."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    recording = Recording.open(output)
    tiers = ", ".join(
        f"{len(recording.tier(tier))} {tier}" for tier in ("train", "validation", "test") if len(recording.tier(tier))
    )
    print(
        f"{output}: {counted(recording.n_trials, 'trial')} ({tiers}) of {counted(len(session.images), 'image')} "
        f"{recording.image_shape}, {counted(recording.n_neurons, 'neuron')}"
    )
    for flag in quality_of(recording).flags:
        print(f"warning: {flag}")
    return 0


def _to_nwb(args: argparse.Namespace) -> int:
    check_output(args.output, force=args.force)
    found, _ = find_recordings([args.recording])
    if len(found) != 1:
        raise RecordingError(f"{args.recording} holds {counted(len(found), 'recording')}", expected="one")
    one = found[0]
    recording = Recording.open(one.path, mouse_id=one.mouse_id, inside=one.inside, nan_trials=args.nan_trials)
    write_nwb(recording, args.output, session_start=args.session_start)
    print(f"{args.output}: {counted(recording.n_trials, 'trial')}, {counted(recording.n_neurons, 'neuron')}")
    return 0
