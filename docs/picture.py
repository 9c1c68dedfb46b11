"""Draws the figure of the README from the demo twin: `pip install matplotlib`, then `python docs/picture.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from server.inference.engine import Engine  # noqa: E402

MOUSE = "SIM1"


def main() -> None:
    engine = Engine.load(ROOT / "exported_models" / "demo")
    mouse = engine.manifest.mice[MOUSE]
    image = np.asarray(Image.open(ROOT / "docs" / "images" / "leaves.png"), np.float32)
    mean_behavior = np.array([channel.mean for channel in mouse.behavior], np.float32)
    gaze = np.array([channel.mean for channel in mouse.pupil_center], np.float32)
    speeds = np.linspace(0, 40, 41, dtype=np.float32)
    n = len(speeds)
    behavior = np.tile(mean_behavior, (n, 1))
    behavior[:, 2] = speeds
    stimulus = engine.check(MOUSE, np.tile(image, (n, 1, 1, 1)), behavior, np.tile(gaze, (n, 1)))
    prediction = engine.predict_many([stimulus])[0]
    at_rest = prediction.response[0]
    order = np.argsort(at_rest)[::-1]

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (shown, population, tuning) = plt.subplots(1, 3, figsize=(11, 2.9), width_ratios=[1.25, 1.5, 1.25])
    shown.imshow(image, cmap="gray", vmin=0, vmax=255)
    shown.set(title=f"an image shown to mouse {MOUSE}", xticks=[], yticks=[])
    population.fill_between(
        np.arange(len(order)),
        (at_rest - prediction.spread[0])[order],
        (at_rest + prediction.spread[0])[order],
        alpha=0.35,
        linewidth=0,
        label="spread over members",
    )
    population.plot(at_rest[order], linewidth=1.2, label="ensemble")
    population.set(title="predicted responses", xlabel="neurons, sorted", ylabel="response / std", ylim=(0, None))
    population.legend(frameon=False)
    change = prediction.response[-1] - at_rest
    for i in [*np.argsort(change)[::-1][:3], *np.argsort(change)[:3]]:
        tuning.plot(speeds, prediction.response[:, i], label=f"neuron {engine.neurons[MOUSE].ids[i]}")
    top = 1.4 * float(prediction.response.max())  # leaves space for the legend
    tuning.set(title="the same image, running", xlabel="running speed [cm/s]", ylim=(0, top))
    tuning.legend(frameon=False, fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "twin.png", dpi=130)


if __name__ == "__main__":
    main()
