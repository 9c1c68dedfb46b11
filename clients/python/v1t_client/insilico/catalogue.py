"""Which experiments there are, by the name of their command. A receipt names one of them."""

from __future__ import annotations

from v1t_client.insilico.experiment import Experiment

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, type[Experiment]] = {}
