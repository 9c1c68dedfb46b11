"""In-silico experiments on a digital twin, one call each. Needs `pip install 'v1t-client[insilico]'`.

    from v1t_client.insilico import EXPERIMENTS, open_predictor, perform

    with open_predictor("http://127.0.0.1:3000") as twin:          # or the folder of a bundle
        result = EXPERIMENTS["rf"](mouse="A", best=100).run(twin)  # in memory
    result.dataset  # an xarray.Dataset with units and neuron ids

Each experiment is a frozen set of parameters (`Experiment`) that runs on any `Predictor`; `perform` also saves it, with
figures and a receipt, and goes on after an interruption. On the command line each is a verb of `v1t`.
"""

from __future__ import annotations

from v1t_client.insilico.catalogue import EXPERIMENTS
from v1t_client.insilico.experiment import Experiment, perform
from v1t_client.insilico.monitor import Monitor
from v1t_client.insilico.opening import open_predictor
from v1t_client.insilico.receipt import Receipt
from v1t_client.insilico.results import Result
from v1t_client.insilico.screen import Screen
from v1t_client.insilico.subject import Subject
from v1t_client.insilico.work import Work

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
]
