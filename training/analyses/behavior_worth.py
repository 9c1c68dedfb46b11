"""What behaviour and gaze are worth to a twin (paper, discussion): scores without them, and their part of the variance.

Each input is held at its training mean, or shuffled over the test trials several times. Shuffling an input also breaks
its relation to the other inputs. `training.analyses.variance_partition` defines the parts of the variance. For a
simulated mouse all is done for its true expected responses, too: that is what a perfect twin loses.

Leaving out an input in training is another question, which `python -m training study behavior` answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tqdm import tqdm

from training.analyses.variance_partition import PARTS, partition, share_that_needs
from training.checkpoints.ensemble import Ensemble
from training.data.layout import TRUTH, BehaviorChannel
from training.data.recordings import Recording
from training.errors import ConfigError, RecordingError
from training.figures import COLORS, PAGE, styled
from training.metrics import FEV_THRESHOLD, fev_feve, single_trial_correlation
from training.simulation.cortex import load_cortex
from training.tables import mean_and_sd

__all__ = ["BehaviorWorth", "Worth", "behavior_worth", "draw", "inputs_of", "notes", "over_mice"]

DRAWS = 5  # shuffles of each input
BATCH = 64

# The trials' indices of the images (T,), behaviour and pupil centre (T, K + 2) -> standardised responses (T, N)
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Worth:
    """What inputs are worth to one predictor: a twin, or the truth of a simulated mouse.

    Attributes:
        score: single-trial correlation with all inputs as recorded, mean over neurons.
        held: input -> the same with this input at its training mean.
        shuffled: input -> the same for every shuffle of this input over the test trials.
        needs: input -> share of the prediction's variance that needs it, mean over neurons.
        of_prediction, of_responses: part -> share of the variance, mean over neurons.
        image_of_explainable: what the image's part is of the variance between images, which repeats tell from the rest;
            over neurons with FEV of 0.15 or more. None without repeats.
    """

    score: float
    held: dict[str, float]
    shuffled: dict[str, list[float]]
    needs: dict[str, float]
    of_prediction: dict[str, float]
    of_responses: dict[str, float]
    image_of_explainable: float | None


@dataclass(frozen=True, eq=False)
class BehaviorWorth:
    """A twin of one mouse and, if the mouse is simulated, its true expected responses."""

    mouse_id: str
    n_trials: int
    twin: Worth
    truth: Worth | None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table of scores: one per input."""
        rows = []
        for name in self.twin.held:
            row: dict[str, Any] = {"mouse": self.mouse_id, "input": name}
            for prefix, worth in (("", self.twin), ("true_", self.truth)):
                if worth is not None:
                    mean, sd = mean_and_sd(worth.shuffled[name])
                    row |= {
                        f"{prefix}recorded": worth.score,
                        f"{prefix}held": worth.held[name],
                        f"{prefix}shuffled": mean,
                        f"{prefix}shuffled_sd": sd,
                        f"{prefix}needs_it": worth.needs[name],
                    }
            rows.append(row)
        return rows

    def partition_rows(self) -> list[dict[str, Any]]:
        """The rows of the table of parts: of the twin's predictions, of the responses and, if known, of the truth."""
        rows: list[dict[str, Any]] = []
        for words, worth in (("twin", self.twin), ("truth", self.truth)):
            if worth is not None:
                head = {"mouse": self.mouse_id, "predictor": words}
                rows.append({**head, "variance_of": "predictions", **worth.of_prediction})
                explainable = {"image_of_explainable": worth.image_of_explainable}
                rows.append({**head, "variance_of": "responses", **worth.of_responses, **explainable})
        return rows


def behavior_worth(ensemble: Ensemble, recording: Recording, *, draws: int = DRAWS, seed: int = 0) -> BehaviorWorth:
    """Scores and partitions the test trials of a mouse.

    Raises:
        ConfigError: the twin uses neither behaviour nor pupil centre.
        RecordingError: the recording lacks an input that the twin uses.
        ScoringError: the test responses are withheld.
    """
    trials = recording.scorable("test")
    uses = [name for name in ensemble.uses() if name != "image"]
    if not uses:
        raise ConfigError("the twin uses neither behaviour nor pupil centre, so they are worth nothing to it")
    recorded = {"behavior": recording.has_behavior, "pupil_center": recording.has_pupil_center}
    if missing := [name for name in uses if not recorded[name]]:
        raise RecordingError(f"mouse {recording.mouse_id!r} has no {missing[0]}, which the twin uses")
    inputs = inputs_of(recording.behavior_channels)
    K = len(recording.behavior_channels)
    usable = set(range(K) if "behavior" in uses else ()) | set((K, K + 1) if "pupil_center" in uses else ())
    used = {name: columns for name, columns in inputs.items() if set(columns) <= usable}
    twin = _worth(_twin(ensemble, recording), recording, used, draws=draws, seed=seed, label="twin")
    true = _truth(recording)
    truth = None if true is None else _worth(true, recording, inputs, draws=draws, seed=seed, label="truth")
    return BehaviorWorth(recording.mouse_id, len(trials), twin, truth)


def inputs_of(channels: Sequence[BehaviorChannel]) -> dict[str, tuple[int, ...]]:
    """Name -> which of the K behaviour channels (0 to K - 1) and of the pupil centre (K, K + 1) it is."""
    K = len(channels)
    return {
        **{channel.name: (column,) for column, channel in enumerate(channels)},
        "behavior": tuple(range(K)),
        "pupil_center": (K, K + 1),
        "behavior and pupil_center": tuple(range(K + 2)),
    }


def _twin(ensemble: Ensemble, recording: Recording) -> Predict:
    device = next(ensemble.parameters()).device
    ensemble.eval()
    K = len(recording.behavior_channels)

    def predict(images: np.ndarray, states: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                image = recording.batch(images[start : start + BATCH]).image
                state = states[start : start + BATCH]
                inputs = (torch.from_numpy(np.ascontiguousarray(x)) for x in (image, state[:, :K], state[:, K:]))
                parts.append(ensemble(recording.mouse_id, *(x.to(device) for x in inputs)).cpu().numpy())
        return np.concatenate(parts)

    return predict


def _truth(recording: Recording) -> Predict | None:
    """The true expected responses of a simulated mouse, standardised as a twin's."""
    path = recording.path / TRUTH
    if not recording.simulated or not path.is_file():
        return None
    cortex, K = load_cortex(path), len(recording.behavior_channels)

    def predict(images: np.ndarray, states: np.ndarray) -> np.ndarray:
        parts = [
            cortex.expected_responses(
                recording.batch(images[start : start + BATCH]).image,
                states[start : start + BATCH, :K],
                states[start : start + BATCH, K:],
            )
            for start in range(0, len(images), BATCH)
        ]
        return np.asarray(np.concatenate(parts) / recording.response_std)

    return predict


def _worth(
    predict: Predict,
    recording: Recording,
    inputs: Mapping[str, Sequence[int]],
    *,
    draws: int,
    seed: int,
    label: str,
) -> Worth:
    trials = recording.scorable("test")
    responses = recording.responses(trials.indices) / recording.response_std
    states = np.concatenate(recording.states_of(trials.indices), axis=1)  # (T, K + 2)
    K = len(recording.behavior_channels)
    gaze = [K, K + 1]
    statistics = recording.statistics
    typical = np.concatenate([statistics.behavior.mean, statistics.pupil_center.mean]).astype(states.dtype)
    rng = np.random.default_rng(seed)

    def score(prediction: np.ndarray) -> float:
        return float(single_trial_correlation(responses, prediction).mean())

    n_passes, label = 1 + (1 + draws) * len(inputs) + draws, f"mouse {recording.mouse_id}, {label}"
    with tqdm(total=n_passes, desc=label, unit="pass", leave=False, disable=None) as bar:

        def run(images: np.ndarray, given: np.ndarray) -> np.ndarray:
            bar.update()
            return predict(images, given)

        prediction = run(trials.indices, states)
        held, shuffled, means = {}, {}, {}
        for name, columns in inputs.items():
            held[name] = score(run(trials.indices, _replaced(states, columns, typical[list(columns)])))
            found = [
                run(trials.indices, _replaced(states, columns, states[rng.permutation(len(states))][:, list(columns)]))
                for _ in range(draws)
            ]
            shuffled[name] = [score(one) for one in found]
            means[name] = _average(found)
        of_behavior = _average(
            [
                run(rng.permutation(trials.indices), _replaced(states, gaze, states[rng.permutation(len(states)), K:]))
                for _ in range(draws)
            ]
        )
    # An input that the predictor does not use has no shuffles: they would change nothing.
    by_image = means.get("behavior and pupil_center", means.get("behavior", means.get("pupil_center")))
    assert by_image is not None
    conditional = {"i": by_image, "b": of_behavior, "ib": means.get("pupil_center", prediction)}
    of_responses = partition(responses, prediction, conditional)
    return Worth(
        score=score(prediction),
        held=held,
        shuffled=shuffled,
        needs={name: _mean(share_that_needs(prediction, mean)) for name, mean in means.items()},
        of_prediction={name: _mean(part) for name, part in partition(prediction, prediction, conditional).items()},
        of_responses={name: _mean(part) for name, part in of_responses.items()},
        image_of_explainable=_of_explainable(of_responses["image"], responses, prediction, trials.image_ids),
    )


def _replaced(states: np.ndarray, columns: Sequence[int], values: np.ndarray) -> np.ndarray:
    states = states.copy()
    states[:, list(columns)] = values
    return states


def _average(predictions: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(predictions, axis=0, dtype=np.float64))


def _mean(values: np.ndarray) -> float:
    return mean_and_sd(values.tolist())[0]


def _of_explainable(
    image: np.ndarray, responses: np.ndarray, prediction: np.ndarray, image_ids: np.ndarray
) -> float | None:
    if np.unique(image_ids, return_counts=True)[1].min() < 2:
        return None
    fev, _ = fev_feve(responses, prediction, image_ids)
    reliable = fev >= FEV_THRESHOLD
    return _mean(image[reliable] / fev[reliable]) if reliable.any() else None


def over_mice(results: Sequence[BehaviorWorth]) -> dict[str, float]:
    """Mean and sd over mice of the score, the loss without each input, and the parts of the responses' variance."""
    values: dict[str, list[float]] = {}
    for worth in (result.twin for result in results):
        found = {"recorded": worth.score}
        found |= {f"{name} held": score for name, score in worth.held.items()}
        found |= {f"{name} shuffled": float(np.mean(scores)) for name, scores in worth.shuffled.items()}
        found |= {f"part of {name}": part for name, part in worth.of_responses.items()}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    summary = {}
    for name, of_mice in values.items():
        summary[f"{name} mean"], summary[f"{name} sd"] = mean_and_sd(of_mice)
    return summary


def notes(results: Sequence[BehaviorWorth]) -> list[str]:
    """Sentences that a reader of the tables needs."""
    trials = ", ".join(f"{result.mouse_id}: {result.n_trials}" for result in results)
    said = [
        f"Single-trial correlation over the test trials ({trials}) with all inputs as recorded, with one held at its "
        f"training mean, and with one shuffled over the trials (mean and sd of {DRAWS} shuffles). needs_it: share of "
        "the variance of the predictions that needs the input, alone or with others.",
        "image: the mean response to each image. behavior: the same for all images. image_x_behavior: what behaviour "
        "adds for each image, such as a gain. gaze: with all of its interactions. rest: noise, and what is missed. A "
        "part is negative where the prediction is worse with it. image_of_explainable: the image's part over the "
        f"variance between images, for neurons with FEV of {FEV_THRESHOLD} or more.",
    ]
    if any(result.truth is not None for result in results):
        said.append("truth (true_): the same for the true expected responses of a simulated mouse, a perfect twin.")
    return said


SHADES = dict(zip(PARTS, (COLORS[0], COLORS[4], COLORS[1], COLORS[2], "0.85"), strict=True))
WORDS = {"image_x_behavior": "image x behaviour", "behavior": "behaviour", "pupil_center": "gaze"}
TICKS = {
    "pupil_dilation": "pupil\ndilation",
    "pupil_dilation_derivative": "its\nderivative",
    "running_speed": "running\nspeed",
    "behavior": "all\nbehaviour",
    "pupil_center": "gaze",
    "behavior and pupil_center": "all and\ngaze",
}


def draw(results: Sequence[BehaviorWorth]) -> Figure:
    """Left, the score that is lost without each input; right, the parts of the responses' variance."""
    with styled():
        bars = sum(1 + (result.truth is not None) for result in results)
        figure = Figure(figsize=(PAGE, max(2.6, 1.2 + 0.22 * bars)))
        left, right = figure.subplots(1, 2)
        _draw_losses(left, results)
        _draw_parts(right, results)
    return figure


def _draw_losses(axes: Axes, results: Sequence[BehaviorWorth]) -> None:
    names = list(results[0].twin.held)
    for i, name in enumerate(names):
        for place, color, of in (
            (i - 0.18, COLORS[0], lambda worth, name=name: worth.held[name]),
            (i + 0.18, COLORS[5], lambda worth, name=name: float(np.mean(worth.shuffled[name]))),
        ):
            losses = [of(result.twin) - result.twin.score for result in results]
            axes.bar(place, float(np.mean(losses)), width=0.34, color=color)
            axes.plot(np.full(len(losses), place), losses, "o", color="0.15", markersize=2)
            true = [of(result.truth) - result.truth.score for result in results if result.truth is not None]
            if true:
                axes.hlines(float(np.mean(true)), place - 0.17, place + 0.17, color=COLORS[1], linewidth=1.5, zorder=3)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(range(len(names)), [TICKS.get(name, name.replace("_", "\n")) for name in names])
    axes.tick_params(axis="x", labelsize=6)
    axes.set_ylabel("change of the single-trial correlation")
    handles: list[Artist] = [
        Patch(color=COLORS[0], label="held at the mean"),
        Patch(color=COLORS[5], label="shuffled over trials"),
        Line2D([], [], color="0.15", marker="o", markersize=2, linestyle="", label="a mouse"),
    ]
    if any(result.truth is not None for result in results):
        handles.append(Line2D([], [], color=COLORS[1], linewidth=1.5, label="a perfect twin"))
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _draw_parts(axes: Axes, results: Sequence[BehaviorWorth]) -> None:
    bars: list[tuple[str, Mapping[str, float]]] = []
    for result in results:
        bars.append((result.mouse_id, result.twin.of_responses))
        if result.truth is not None:
            bars.append((f"{result.mouse_id}, truth", result.truth.of_responses))
    for row, (_, parts) in enumerate(bars):
        right, left = 0.0, 0.0  # negative parts are stacked to the left of 0
        for name in PARTS:
            start = right if parts[name] >= 0 else left
            axes.barh(row, parts[name], left=start, height=0.7, color=SHADES[name])
            right, left = (right + parts[name], left) if parts[name] >= 0 else (right, left + parts[name])
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("share of the variance of the responses")
    handles = [Patch(color=SHADES[name], label=WORDS.get(name, name)) for name in PARTS]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
