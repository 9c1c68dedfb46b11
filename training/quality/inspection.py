"""`python -m training inspect`: what recordings contain, after checking them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from training.arguments import add_nan_trials
from training.data.discovery import find_recordings
from training.data.layout import PUPIL_CENTER_NAMES, STATISTICS, TIERS
from training.data.leaks import find_leaks, leaks_text
from training.data.metadata import InputStatistics
from training.data.recordings import Recording
from training.quality.checks import quality_of
from training.quality.report import write_report
from training.tables import counted

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "folder or .zip in the Sensorium 2022 layout, or a folder of them; NAME=PATH names its mouse"
    parser.add_argument("recording", nargs="+", type=Path, help=help_)
    parser.add_argument("--cache", type=Path, help="folder for caches (default: $V1T_CACHE, or beside the recording)")
    leaks = "also look for images that occur in two tiers, of one recording or of two of them"
    parser.add_argument("--leaks", action="store_true", help=leaks)
    report = "also write a quality report into this folder, and print what needs a look before training"
    parser.add_argument("--report", type=Path, metavar="FOLDER", help=report)
    add_nan_trials(parser)


def run(args: argparse.Namespace) -> int:
    found, notes = find_recordings(args.recording)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    recordings = []
    for one in found:
        recording = Recording.open(
            one.path, cache=args.cache, mouse_id=one.mouse_id, inside=one.inside, nan_trials=args.nan_trials
        )
        print(_describe(recording))
        recordings.append(recording)
    if args.leaks:
        print(leaks_text(find_leaks(recordings)))
    if args.report:
        reported = [(recording, quality_of(recording)) for recording in recordings]
        for recording, quality in reported:
            for flag in quality.flags:
                print(f"warning: {recording.mouse_id}: {flag}")
        print(f"report: {write_report(args.report, reported)[0]}")
    return 0


def _describe(recording: Recording) -> str:
    tiers = {tier: recording.tier(tier) for tier in TIERS}
    lines = [
        f"{recording.path.name}" + (f"/{recording.inside}" if recording.inside else ""),
        f"  mouse         {recording.mouse_id} ({recording.data_key})",
        f"  neurons       {recording.n_neurons}",
        f"  images        {recording.image_shape} {', '.join(recording.image_channels)}",
        *(
            f"  {tier:<13} {counted(len(trials), 'trial')} of {counted(len(np.unique(trials.image_ids)), 'image')}"
            for tier, trials in tiers.items()
            if len(trials)
        ),
        f"  {'':<27} {'mean':>10} {'std':>10} {'min':>10} {'median':>10} {'max':>10}",
    ]
    behavior = tuple(channel.name for channel in recording.behavior_channels)
    tables = (
        (recording.image_channels, recording.statistics.images),
        (behavior if recording.has_behavior else (), recording.statistics.behavior),
        (PUPIL_CENTER_NAMES if recording.has_pupil_center else (), recording.statistics.pupil_center),
        (("responses (mean of neurons)",), _mean_over_neurons(recording.statistics.responses)),
    )
    for names, values in tables:
        columns = (values.mean, values.std, values.min, values.median, values.max)
        lines += [f"  {name:<27}" + "".join(f" {c[k]:>10.3f}" for c in columns) for k, name in enumerate(names)]
    lines += [f"  note: {note}" for note in recording.notes()]
    return "\n".join([*lines, f"  data hash     {recording.data_hash}", f"  packed        {recording.cache}"])


def _mean_over_neurons(values: InputStatistics) -> InputStatistics:
    return InputStatistics(**{name: getattr(values, name).mean(keepdims=True) for name in STATISTICS})
