"""The command line, `python -m training VERB`; `VERBS` lists the verbs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from training.arguments import Parser
from training.errors import TrainingError

# verb -> (module with `add_arguments` and `run`, what it does)
VERBS = {
    "simulate": (
        "training.simulation.simulate",
        "write simulated recordings in the Sensorium layout, with known ground truth",
    ),
    "convert": (
        "training.convert.convert",
        "make a recording from NWB files or from arrays of your own, or an NWB file from a recording",
    ),
    "inspect": ("training.quality.inspection", "print what a recording contains, and check it"),
    "trials": ("training.data.exported_trials", "write the trials of a tier as arrays, for v1t and other programs"),
    "import": (
        "training.checkpoints.importer",
        "convert weights of the reference code or of the Sensorium baselines to a checkpoint",
    ),
    "train": ("training.trainer.run", "train a twin or an ensemble as in the paper, or resume its training"),
    "distill": (
        "training.distillation.distill",
        "train a small student that answers like an ensemble, at a fraction of its cost",
    ),
    "evaluate": ("training.evaluation.report", "score a twin on test trials: tables, scores of every neuron, figures"),
    "analyze": ("training.analyses.analyze", "analyse what a twin has learned, as in the paper's appendix A"),
    "submit": ("training.evaluation.submission", "write submission files for the Sensorium competition"),
    "check-submission": ("training.evaluation.submission_check", "compare submission files with the recordings"),
    "sweep": ("training.studies.sweep", "search for better hyperparameters, in any number of processes"),
    "study": ("training.studies.study", "repeat one of the paper's studies, from recordings to table and figure"),
    "export": ("training.export.bundle", "export a twin to a bundle for the server"),
    "card": ("training.export.card", "write a bundle's model card from its manifest"),
    "combine": ("training.evaluation.combine", "fit a linear layer over the members of an ensemble"),
    "describe": ("training.checkpoints.describe", "print a checkpoint's configuration, parameters and cost"),
}

EPILOG = """examples:
  python -m training simulate --output runs/recordings --mice 2
  python -m training train --recordings runs/recordings --output runs/v1t --members 3 --set core.patch_stride=4
  python -m training evaluate runs/v1t --recordings runs/recordings --report runs/v1t-scores
  python -m training export runs/v1t --recordings runs/recordings --output exported_models/mine
  python -m training import path/to/run --output runs/imported
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="python -m training",
        description="Train, import, evaluate and export digital twins of mouse visual cortex.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, help_) in VERBS.items():
        sub = verbs.add_parser(
            verb,
            help=help_,
            description=help_[0].upper() + help_[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if arguments[:1] == [verb]:  # imports only the module of this verb, so that --help is quick
            importlib.import_module(module).add_arguments(sub)
    args = parser.parse_args(arguments)
    try:
        code = int(importlib.import_module(VERBS[args.verb][0]).run(args))
        sys.stdout.flush()
        return code
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # such as `python -m training inspect | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
