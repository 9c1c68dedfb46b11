"""From a study to its trainings: which model, on which mice, with which seed, in which folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from training.config import PRESETS, CNNConfig, ModelConfig, TrainingConfig, with_options
from training.studies.catalog import TRIALS, Scale, Study, Variant
from training.trainer.run import checked_training

__all__ = ["Run", "plan"]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        mice: trained on, and scored on: mouse_id -> hash of its recording.
        core: the run whose core it takes and freezes.
    """

    variant: Variant
    seed: int
    model: ModelConfig
    training: TrainingConfig
    mice: Mapping[str, str]
    core: Run | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its folder: equal trainings have one name, so studies share what they train."""
        content = json.dumps(self._content(), sort_keys=True)
        kind = self.variant.system + ("" if self.core is None else "-transfer")
        return f"{kind}-seed{self.seed}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    @property
    def label(self) -> str:
        """What progress lines call it."""
        where = "" if self.variant.mice in ("all", "source") else f" {'+'.join(self.mice)}"
        at = "" if self.variant.x is None else f" {self.variant.x:g}"
        return f"{self.variant.label}{at}{where} seed {self.seed}"

    def _content(self) -> dict[str, Any]:
        return {
            "core_kind": self.model.core.kind,
            "model": self.model.model_dump(mode="json", exclude_defaults=True),  # so names outlive new options
            "training": self.training.model_dump(mode="json", exclude_defaults=True),
            "mice": dict(self.mice),
            "trials": self.variant.trials,
            "seed": self.seed,
            "from": None if self.core is None else self.core.name,
        }


def plan(
    study: Study,
    scale: Scale,
    mice: Mapping[str, str],
    *,
    seeds: int,
    n_trials: int,
    source: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The trainings of a study, those that others stand on first, seed after seed: a study broken off is a smaller one.

    Args:
        mice: those that the study is about, mouse_id -> hash of its recording. source: those whose core is transferred.
        n_trials: how many training trials each of the mice has at least.
        options, training: of every model and training, on top of the scale's and the variants'.
    """
    variants = sorted(_possible(study, n_trials), key=lambda variant: variant.core is not None)
    runs: list[Run] = []
    for seed in range(seeds):
        cores: dict[tuple[str, str | None], Run] = {}  # by label, and by the mouse that it is for if each has its own
        for variant in variants:
            for trained, about in _groups(variant, mice, source or {}):
                core = None if variant.core is None else cores.get((variant.core, about)) or cores[variant.core, None]
                run = Run(
                    variant=variant,
                    seed=seed,
                    model=_model(variant, scale, options or {}),
                    training=_training(study, variant, scale, training or {}),
                    mice=trained,
                    core=core,
                )
                cores[variant.label, about] = run
                runs.append(run)
    return runs


def _possible(study: Study, n_trials: int) -> list[Variant]:
    """The variants that the recordings have enough trials for; those with all trials get their place on that axis."""
    enough = [variant for variant in study.variants if variant.trials is None or variant.trials < n_trials]
    if study.axis != TRIALS:
        return enough
    return [replace(variant, x=float(variant.trials or n_trials)) for variant in enough]


def _groups(
    variant: Variant, mice: Mapping[str, str], source: Mapping[str, str]
) -> list[tuple[Mapping[str, str], str | None]]:
    """(trained on, the one mouse that it is for)."""
    if variant.mice == "own":
        return [({mouse: data}, mouse) for mouse, data in mice.items()]
    if variant.mice == "others":
        return [({other: data for other, data in mice.items() if other != mouse}, mouse) for mouse in mice]
    return [(mice, None)] if variant.mice == "all" else [(source, None)]


def _model(variant: Variant, scale: Scale, options: Mapping[str, Any]) -> ModelConfig:
    preset = PRESETS[variant.system]
    sized = scale.convolution if isinstance(preset.core, CNNConfig) else scale.transformer
    return with_options(preset, {**sized, **variant.options, **options})


def _training(study: Study, variant: Variant, scale: Scale, options: Mapping[str, Any]) -> TrainingConfig:
    transfer = {}
    if variant.core is not None:
        transfer = {"readout_start": variant.start, **scale.transfer.get(variant.start, {})}
    training = checked_training({**scale.training.model_dump(), **transfer, **options})
    longer = scale.trials / variant.x if scale.same_updates and study.axis == TRIALS and variant.x else 1.0
    return training.model_copy(
        update={
            "max_epochs": max(1, int(variant.steps * longer * training.max_epochs)),
            "patience": round(longer * training.patience),
        }
    )
