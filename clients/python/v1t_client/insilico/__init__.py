"""In-silico experiments on a digital twin. Needs `pip install './clients/python[insilico]'`.

    from v1t_client.insilico import EXPERIMENTS, open_predictor, perform

    with open_predictor("http://127.0.0.1:3000") as twin:          # or the folder of a bundle
        result = EXPERIMENTS["rf"](mouse="A", best=100).run(twin)  # in memory
    result.dataset  # an xarray.Dataset with units and neuron ids

Each experiment is a frozen set of parameters (`Experiment`) that runs on any `Predictor`. `perform` also saves the
result with figures and a receipt, and resumes after an interruption. Each is also a verb of the command `v1t`.
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from v1t_client.insilico.catalogue import EXPERIMENTS
    from v1t_client.insilico.framework.checkpoint import Work
    from v1t_client.insilico.framework.experiment import Experiment, perform
    from v1t_client.insilico.framework.plotting import styled
    from v1t_client.insilico.framework.predictors import open_predictor
    from v1t_client.insilico.framework.receipt import Receipt
    from v1t_client.insilico.framework.result import Result
    from v1t_client.insilico.framework.subject import Subject
    from v1t_client.insilico.stimuli.monitor import Monitor
    from v1t_client.insilico.stimuli.screen import Screen

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Monitor",
    "Receipt",
    "Result",
    "Screen",
    "Subject",
    "Work",
    "open_predictor",
    "perform",
    "styled",
]

# Name -> its module, which is imported when the name is first used: opening a predictor loads no experiment.
_MODULES = {
    "EXPERIMENTS": "catalogue",
    "Experiment": "framework.experiment",
    "Monitor": "stimuli.monitor",
    "Receipt": "framework.receipt",
    "Result": "framework.result",
    "Screen": "stimuli.screen",
    "Subject": "framework.subject",
    "Work": "framework.checkpoint",
    "open_predictor": "framework.predictors",
    "perform": "framework.experiment",
    "styled": "framework.plotting",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
