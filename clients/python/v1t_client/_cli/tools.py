"""Verbs of `v1t` that work on results: `replay` repeats one; `pack` and `score` are for inception loops."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from v1t_client._answers.prediction import count as counted
from v1t_client._cli.hints import on_command_line
from v1t_client._cli.output import check_output
from v1t_client._cli.predictor_options import add_bundle, open_from
from v1t_client._options import count, number, words
from v1t_client.insilico.framework.checkpoint import new_folder
from v1t_client.insilico.framework.receipt import Receipt
from v1t_client.insilico.framework.result import Result
from v1t_client.insilico.inception_loop.pack import KINDS, PackOptions, make_pack
from v1t_client.insilico.inception_loop.score import score_figures, score_pack, summary_of
from v1t_client.insilico.recorded_trials import evaluate
from v1t_client.insilico.replay import TOLERANCE, replay

__all__ = ["TOOLS", "add_tools"]

_REPLAY = """\
examples:
  v1t replay meis                               a result's folder, or its receipt.json; uses the server of the receipt
  v1t replay meis --url http://twins:3000       uses another server
  v1t replay meis --bundle exported_models/mine --output meis-again

Exit code 0: the same bundle gave the same result; 1: it did not, and the differences are listed.
"""


_PACK = """\
examples:
  v1t pack meis --output pack                   all images of the result, at the training images' luminance
  v1t pack meis --n-units 40 --score-min 0.3 --min-distance-um 50 --repeats 20 --output pack
  v1t pack meis --kinds mei,lei --luminance 105 --contrast 12 --output pack

The folder gets frames.npy and frames/*.png (uint8), trials.csv, predictions.npy and manifest.json. Keep it: `v1t score`
compares the new recording with it.
"""

_SCORE = """\
examples:
  v1t score pack responses.npy --output scores     (trials, units), in the order of trials.csv and manifest.json
  v1t score pack responses.csv --output scores     a column per unit, headed by its id, without lost units
"""


_EVALUATE = """\
examples:
  v1t evaluate A --recording static21067-10-18-GrayImageNet-94c6ff995dac583098847cfecd43e7b6
  v1t evaluate SIM1 --recording runs/recordings/static90001-... --tier validation --bundle exported_models/demo

The scores are those of `python -m training evaluate` on the same recording. If they are lower, the deployment is wrong.
"""


def add_tools(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the verbs; see `experiments.add_verbs`."""
    parser = verb("replay", "repeat the experiment of a receipt, and compare the results", _REPLAY, of_receipt=True)
    parser.add_argument("receipt", type=Path, metavar="RECEIPT", help="a receipt.json, or the folder of a result")
    add_bundle(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep the new result")
    parser.add_argument("--force", action="store_true", help="overwrite FOLDER")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.add_argument(
        "--tolerance",
        type=number,
        default=TOLERANCE,
        metavar="X",
        help="allowed share of a variable's largest value (%(default)s)",
    )
    summary = "make an inception-loop pack of most exciting inputs: frames, trials, predictions"
    _add_pack(verb("pack", summary, _PACK, of_receipt=True))
    parser = verb("score", "compare the recording of a pack with its predictions", _SCORE)
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder of `v1t pack`")
    parser.add_argument("responses", type=Path, metavar="RESPONSES", help="recorded responses, .npy or .csv")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the result")

    parser = verb("evaluate", "score the served twin on a recording, to find a wrong deployment", _EVALUATE)
    parser.add_argument("mouse", metavar="MOUSE", help="mouse id, from `v1t mice`")
    help_ = "unpacked folder of a recording in the Sensorium 2022 layout"
    parser.add_argument("--recording", type=Path, required=True, metavar="FOLDER", help=help_)
    parser.add_argument("--tier", default="test", help="train, validation or test (%(default)s)")
    parser.add_argument("--model", help="bundle name, if several bundles contain this mouse")
    add_bundle(parser)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", type=Path, metavar="RESULT", help="folder of `v1t mei`")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the pack")
    add_bundle(parser)
    units = parser.add_argument_group("units")
    units.add_argument(
        "--n-units", type=count, default=PackOptions.n_units, metavar="N", help="most units (%(default)s)"
    )
    units.add_argument("--score", metavar="NAME", help="test score to choose by (default: the first known)")
    units.add_argument("--score-min", type=number, metavar="R", help="only units with at least this score")
    units.add_argument(
        "--min-distance-um",
        type=number,
        default=PackOptions.min_distance_um,
        metavar="UM",
        help="between two units (%(default)s)",
    )
    frames = parser.add_argument_group("frames")
    frames.add_argument("--kinds", type=words, metavar="KIND,...", help=f"of {', '.join(KINDS)} (default: all)")
    frames.add_argument(
        "--luminance", type=number, metavar="LEVEL", help="mean of each frame (default: the training mean)"
    )
    frames.add_argument(
        "--contrast", type=number, metavar="LEVEL", help="std of each frame (default: the images' median)"
    )
    frames.add_argument(
        "--repeats", type=count, default=PackOptions.repeats, metavar="N", help="of each frame (%(default)s)"
    )
    frames.add_argument("--seed", type=count, default=0, metavar="N", help="seed of the order (%(default)s)")


def _replay(options: argparse.Namespace) -> int:
    receipt = Receipt.load(options.receipt)
    check_output(options.output, force=options.force)
    with open_from(options, default=receipt.predictor) as predictor:
        done = replay(
            options.receipt,
            predictor,
            output=options.output,
            force=options.force,
            quiet=options.quiet,
        )
    print(done.report(options.tolerance))
    return 0 if done.same(options.tolerance) else 1


def _pack(options: argparse.Namespace) -> int:
    result = Result.load(options.result)
    check_output(options.output, may_force=False, needs_parent=False)
    chosen = PackOptions(**{name: getattr(options, name) for name in PackOptions.__dataclass_fields__})
    with open_from(options, default=result.receipt.predictor) as predictor:
        manifest = make_pack(result, predictor, options.output, chosen)
    if not manifest["same_bundle"]:
        print("note: the frames were predicted by another bundle than the images were made with", file=sys.stderr)
    for line in (
        *(f"assumed: {line}" for line in manifest["assumed"]),
        *(f"note: {line}" for line in manifest["notes"]),
    ):
        print(on_command_line(line), file=sys.stderr)
    n_units, n_frames = len(manifest["units"]), len(manifest["frames"])
    print(
        f"{counted(n_units, 'unit')} by {manifest['chosen_by']}, {counted(n_frames, 'frame')} of mean "
        f"{manifest['luminance']:.4g} and std "
        f"{manifest['contrast']:.3g}, {counted(manifest['n_trials'], 'trial')}"
    )
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _score(options: argparse.Namespace) -> int:
    check_output(options.output, may_force=False)
    result = score_pack(options.pack, options.responses, command=shlex.join(["v1t", *sys.argv[1:]]))
    with new_folder(options.output) as made:
        result.write(made, result.drawn(score_figures))
    print(summary_of(result))
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    with open_from(options) as predictor:
        found = evaluate(predictor, options.mouse, options.recording, tier=options.tier, model=options.model)
    for line in (*(f"assumed: {line}" for line in found.assumed), *(f"note: {line}" for line in found.notes)):
        print(on_command_line(line), file=sys.stderr)
    of = f"mouse {options.mouse}, {counted(found.n_trials, 'trial')}, {counted(len(found.neuron_ids), 'neuron')}"
    print(f"single-trial correlation  {found.single_trial_correlation.mean():.4f}  ({of})")
    if found.correlation_to_average is not None:
        print(f"correlation to average    {found.correlation_to_average.mean():.4f}")
    return 0


TOOLS: dict[str, Callable[[argparse.Namespace], int]] = {
    "replay": _replay,
    "pack": _pack,
    "score": _score,
    "evaluate": _evaluate,
}
