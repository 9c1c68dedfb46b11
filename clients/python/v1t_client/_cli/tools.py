"""Verbs of `v1t` that work on results: `replay` repeats one, `compare` and `attention-table` put several together.

`pack` and `score` are for inception loops, `evaluate` for recordings.
"""

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
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, number, words
from v1t_client._replacing import replacing
from v1t_client.insilico.comparisons.attention_table import AttentionTable
from v1t_client.insilico.comparisons.twin_figures import twin_figures
from v1t_client.insilico.comparisons.twins import compare_twins, comparison_text
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

_COMPARE = """\
examples:
  v1t rf A --bundle cnn --output rf-cnn            the same mouse and neurons by both twins, then
  v1t rf A --bundle v1t --output rf-v1t
  v1t compare rf-cnn rf-v1t --names CNN,V1T --output compare-A

FOLDER gets summary.md (mean and sd of both twins, and a paired test of each difference), neurons.parquet (one row per
unit), result.nc, receipt.json, and figures as PNG and PDF: fields side by side, sizes, centers. Units are matched by
id. Compared are those whose field is reliable in both twins, without the widest 5 % along x and y of either.
"""

_ATTENTION_TABLE = """\
examples:
  v1t attention-table attention-A attention-B attention-C
  v1t attention-table attention-* --output table.csv      or table.md

Each FOLDER is a result of `v1t attention` with pupil centers, of another mouse or twin. The text shows absolute
correlations with the stars of their p-values; a .csv keeps the signs.
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
    parser = verb("replay", "repeat the experiment of a receipt, and compare the results", _REPLAY, server="receipt")
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

    parser = verb(
        "compare", "compare the receptive fields of two twins of a mouse, unit by unit", _COMPARE, server=None
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="folder of `v1t rf`")
    parser.add_argument("second", type=Path, metavar="SECOND", help="folder of `v1t rf`, of the same mouse and neurons")
    help_ = "of both twins (default: of their models)"
    parser.add_argument("--names", type=words, default=(), metavar="NAME,NAME", help=help_)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the result")

    summary = "make one table over mice of whether attention follows the gaze"
    parser = verb("attention-table", summary, _ATTENTION_TABLE, server=None)
    parser.add_argument("results", type=Path, nargs="+", metavar="FOLDER", help="folders of `v1t attention`")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table: .md or .csv")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")

    summary = "make an inception-loop pack of most exciting inputs: frames, trials, predictions"
    _add_pack(verb("pack", summary, _PACK, server="receipt"))
    parser = verb("score", "compare the recording of a pack with its predictions", _SCORE, server=None)
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


def _compare(options: argparse.Namespace) -> int:
    check_output(options.output, may_force=False)
    command = shlex.join(["v1t", *sys.argv[1:]])
    result = compare_twins(options.first, options.second, names=options.names, command=command)
    text = comparison_text(result)
    with new_folder(options.output) as made:
        result.write(made, result.drawn(twin_figures))
        (made / "summary.md").write_text(text + "\n", encoding="utf-8")
    for line in result.receipt.lines():
        print(on_command_line(line), file=sys.stderr)
    print(text)
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _attention_table(options: argparse.Namespace) -> int:
    output = options.output
    if output is not None and output.suffix not in (".md", ".csv"):
        raise InvalidArgument("--output has an unknown file type", got=output.name, expected=".md or .csv")
    check_output(output, force=options.force)
    table = AttentionTable.of(options.results)
    print(table.to_markdown())
    if output is not None:
        text = table.to_csv() if output.suffix == ".csv" else table.to_markdown() + "\n"
        with replacing(output) as beside:
            beside.write_text(text, encoding="utf-8")
        print(f"wrote {output}", file=sys.stderr)
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
    "compare": _compare,
    "attention-table": _attention_table,
    "pack": _pack,
    "score": _score,
    "evaluate": _evaluate,
}
