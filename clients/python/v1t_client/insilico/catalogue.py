"""All experiments by name. The name is the verb of `v1t`, and receipts contain it."""

from __future__ import annotations

from v1t_client.insilico.experiments.attention import AttentionMaps
from v1t_client.insilico.experiments.behavior import Behavior
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.experiments.retinotopy import Retinotopy
from v1t_client.insilico.experiments.screening import Screening
from v1t_client.insilico.experiments.tuning import Tuning
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.most_exciting_inputs.experiment import MostExcitingInputs

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
