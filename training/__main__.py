"""`python -m training VERB`: what there is stands in `VERBS`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from training.errors import TrainingError

# verb -> (module with add_arguments and run, what it does)
VERBS = {
    "simulate": (
        "training.simulation.simulate",
        "make simulated recordings in the Sensorium layout, with known ground truth",
    ),
    "inspect": ("training.data.recordings", "say what a recording holds, and what is wrong with it"),
    "import": (
        "training.checkpoints.importer",
        "make a checkpoint of the reference code's weights or the Sensorium baselines",
    ),
    "train": ("training.trainer.run", "train a twin, or an ensemble, as in the paper"),
    "evaluate": ("training.evaluation.report", "score a twin on test trials: tables, a row per neuron, figures"),
    "analyze": ("training.analyses.analyze", "what a twin says about its mice: the paper's appendix A"),
    "submit": ("training.evaluation.submission", "write the Sensorium competition's submission files"),
    "sweep": ("training.studies.sweep", "look for better hyperparameters, in any number of processes"),
    "study": ("training.studies.study", "one of the paper's studies, from recordings to table and figure"),
    "export": ("training.export.bundle", "make a bundle that the server serves"),
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
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train, import, evaluate and export digital twins of mouse visual cortex.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, help_) in VERBS.items():
        sub = verbs.add_parser(verb, help=help_, description=help_[0].upper() + help_[1:] + ".")
        if arguments[:1] == [verb]:  # only the verb that is used is imported: help is quick
            importlib.import_module(module).add_arguments(sub)
    args = parser.parse_args(arguments)
    try:
        return int(importlib.import_module(VERBS[args.verb][0]).run(args))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
