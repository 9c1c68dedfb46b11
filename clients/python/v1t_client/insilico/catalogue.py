"""Which experiments there are, by the name of their command. A receipt names one of them."""

from __future__ import annotations

from v1t_client.insilico.attention import AttentionMaps
from v1t_client.insilico.behavior import Behavior
from v1t_client.insilico.experiment import Experiment
from v1t_client.insilico.mei import MostExcitingInputs
from v1t_client.insilico.retinotopy import Retinotopy
from v1t_client.insilico.rf import ReceptiveFields
from v1t_client.insilico.screening import Screening
from v1t_client.insilico.tuning import Tuning

__all__ = ["EXPERIMENTS"]

_ALL: tuple[type[Experiment], ...] = (
    ReceptiveFields,
    Retinotopy,
    Tuning,
    Behavior,
    Screening,
    MostExcitingInputs,
    AttentionMaps,
)
EXPERIMENTS: dict[str, type[Experiment]] = {experiment.name: experiment for experiment in _ALL}
