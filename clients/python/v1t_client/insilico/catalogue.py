"""Which experiments there are, by the name of their command. A receipt names one of them."""

from __future__ import annotations

from v1t_client.insilico.attention import AttentionMaps
from v1t_client.insilico.experiment import Experiment
from v1t_client.insilico.mei import MostExcitingInputs
from v1t_client.insilico.rf import ReceptiveFields
from v1t_client.insilico.tuning import Tuning

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, type[Experiment]] = {
    experiment.name: experiment for experiment in (ReceptiveFields, Tuning, MostExcitingInputs, AttentionMaps)
}
