"""The trainings of a study: which model, on which mice, with which seed, in which folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from training.config import PRESETS, CNNConfig, ModelConfig, TrainingConfig, parse_training, with_options
from training.errors import ConfigError
from training.studies.catalog import TRIALS, Scale, Study, Variant

__all__ = ["Run", "plan"]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        mice: mouse_id -> hash of the recording, of the mice that it is trained and scored on.
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
        """The name of its folder. Equal trainings have equal names, so studies share them."""
        content = json.dumps(self._content(), sort_keys=True)
        kind = self.variant.system + ("" if self.core is None else "-transfer")
        return f"{kind}-seed{self.seed}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    @property
    def label(self) -> str:
        """Its name in progress lines."""
        where = "" if self.variant.mice in ("all", "source") else f" {'+'.join(self.mice)}"
        at = "" if self.variant.x is None else f" {self.variant.x:g}"
        return f"{self.variant.label}{at}{where} seed {self.seed}"

    def _content(self) -> dict[str, Any]:
        return {
            "core_kind": self.model.core.kind,
            # Without defaults, so that names stay the same when options are added.
            "model": self.model.model_dump(mode="json", exclude_defaults=True),
            "training": self.training.model_dump(mode="json", exclude_defaults=True),
            "mice": dict(self.mice),
            "trials": self.variant.trials,
            **({"without": self.variant.without} if self.variant.without else {}),
            "seed": self.seed,
            "from": None if self.core is None else self.core.name,
        }


def plan(
    study: Study,
    scale: Scale,
    mice: Mapping[str, str],
    *,
    seeds: int,
    candidates: int = 0,
    n_trials: int,
    trials: Sequence[int] = (),
    source: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The trainings of a study, one seed after another, so that an interrupted study has complete seeds.

    A study lists a variant whose core is transferred before those that take it, and so do the trainings of a seed.

    Args:
        mice: mouse_id -> hash of the recording, of the mice that the study is about.
        candidates: seeds of the systems that also form ensembles, if more than `seeds`.
        n_trials: the number of training trials that each mouse has at least.
        trials: training trials at which systems are compared, in place of the study's; for studies along `TRIALS`.
        source: like `mice`, for the mice whose core is transferred.
        options, training: options of every model and every training, which override the scale's and the variants'.
    """
    variants = _possible(_at(study, trials, n_trials) if trials else study, n_trials)
    runs: list[Run] = []
    for seed in range(max(seeds, candidates)):
        cores: dict[tuple[str, str | None], Run] = {}  # by label and, if each mouse has its own core, mouse
        for variant in variants if seed < seeds else [one for one in variants if one.label in study.ensembles]:
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


def _at(study: Study, trials: Sequence[int], n_trials: int) -> Study:
    """The study with its systems at other numbers of training trials.

    Raises:
        ConfigError: it does not compare systems along training trials, or there are not so many.
    """
    if study.axis != TRIALS:
        raise ConfigError(
            "--trials is for studies along the number of training trials", hint="Such as sample-efficiency."
        )
    if not all(0 < n <= n_trials for n in trials):
        raise ConfigError(
            "--trials asks for training trials that are not there",
            got=", ".join(map(str, trials)),
            expected=f"1 to {n_trials}, which every mouse has",
        )
    one_of_each = {variant.label: variant for variant in study.variants}.values()
    places = [None if n == n_trials else n for n in sorted(set(trials))]
    return replace(study, variants=tuple(replace(one, trials=place) for one in one_of_each for place in places))


def _possible(study: Study, n_trials: int) -> list[Variant]:
    """The variants for which there are enough trials; those with all trials get their place on the axis."""
    enough = [variant for variant in study.variants if variant.trials is None or variant.trials < n_trials]
    if study.axis != TRIALS:
        return enough
    return [replace(variant, x=float(variant.trials or n_trials)) for variant in enough]


def _groups(
    variant: Variant, mice: Mapping[str, str], source: Mapping[str, str]
) -> list[tuple[Mapping[str, str], str | None]]:
    """Pairs of the mice to train on and, if it is for one mouse only, that mouse."""
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
    transfer = {} if variant.core is None else scale.transfer.get(variant.start, {})
    own = {"readout_start": variant.start, **variant.training}
    training = parse_training({**scale.training.model_dump(), **own, **transfer, **options})
    longer = scale.trials / variant.x if scale.same_updates and study.axis == TRIALS and variant.x else 1.0
    return training.model_copy(
        update={
            "max_epochs": max(1, int(variant.steps * longer * training.max_epochs)),
            "patience": round(longer * training.patience),
        }
    )
