"""Compares in-silico experiments on a twin of simulated mice with the simulation: a table by quality of the twin.

    python docs/insilico_truth.py BUNDLE path/to/recordings/* [--images 4000] [--work runs/truth]

For every mouse of the bundle whose simulated recording is given, this measures receptive fields, tuning and behaviour
(resumable), and compares them with the known neurons. The quality of the twin for a neuron is its single-trial
correlation on test trials divided by that of the simulation's expected responses. Prints Markdown; --json also writes the
numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients" / "python"))

import numpy as np

from training.data.layout import TRUTH
from training.simulation.cortex import load_cortex
from v1t_client.insilico import Result, open_predictor, perform
from v1t_client.insilico.experiments.behavior import Behavior
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.experiments.tuning import Tuning

RELIABLE = 0.5  # split-half reliability of a neuron's mean responses to test images
BOUNDS = {"centre": 2.0, "orientation": 15.0, "running": 0.90}  # px, degrees, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=4000, help="number of noise images")
    parser.add_argument("--work", type=Path, default=Path("runs/truth"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with open_predictor(options.bundle) as twin:
        for mouse in twin.mice():
            folder = next((path for path in options.recordings if f"{mouse.data_key}-" in f"{path.name}-"), None)
            if folder is None or not (folder / TRUTH).is_file():
                print(f"no simulated recording of mouse {mouse.mouse_id} ({mouse.data_key}) was given", file=sys.stderr)
                continue
            rows += compare(twin, mouse.mouse_id, folder, options.work, options.images)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(twin, mouse: str, recording: Path, work: Path, n_images: int) -> list[dict]:
    """Rows for all reliable neurons of a mouse, and for the worst, middle and best third by quality of the twin."""
    fields = _result(ReceptiveFields(mouse=mouse, n_images=n_images, noise="white", chunk=500), twin, work / f"rf-{mouse}")
    contrasts = (0.0, 0.2, 0.4, 0.7, 1.0)
    tuning = _result(Tuning(mouse=mouse, n_phases=4, contrasts=contrasts), twin, work / f"tuning-{mouse}")
    behavior = _result(Behavior(mouse=mouse, channels=("running_speed",)), twin, work / f"behavior-{mouse}")
    cortex = load_cortex(recording / TRUTH)
    with np.load(recording / TRUTH) as truth:
        reliability, ceiling = truth["reliability"], truth["ceiling"]
    ids = np.load(recording / "meta" / "neurons" / "unit_ids.npy")
    assert (fields["neuron"].values == ids).all(), "this is not the recording of the twin"
    detail = twin.mouse(mouse)
    gaze = np.array([channel.mean for channel in detail.pupil_center])
    center = cortex.center + (gaze - cortex.gaze_rest) @ cortex.gaze_gain.T  # at the mean gaze
    centre = np.hypot(fields["envelope_x"].values - center[:, 0], fields["envelope_y"].values - center[:, 1])
    turned = tuning["preferred_orientation"].values - np.degrees(cortex.orientation)
    orientation = np.abs((turned + 90) % 180 - 90)
    running = np.sign(behavior["modulation_running_speed"].values) == np.sign(cortex.running_gain)
    score = fields["single_trial_correlation"].values if "single_trial_correlation" in fields.coords else np.full(len(ids), np.nan)
    quality = score / np.maximum(ceiling, 1e-9)
    reliable = cortex.responsive & (reliability > RELIABLE)
    thirds = np.nanquantile(quality[reliable], [1 / 3, 2 / 3])
    groups = {
        "all": reliable,
        "worst third": reliable & (quality < thirds[0]),
        "middle third": reliable & (quality >= thirds[0]) & (quality < thirds[1]),
        "best third": reliable & (quality >= thirds[1]),
    }
    return [
        {
            "mouse": mouse,
            "neurons": name,
            "n": int(chosen.sum()),
            "quality": float(np.nanmedian(quality[chosen])) if chosen.any() else None,
            "with_field": float(fields["reliable"].values[chosen].mean()),
            "centre_px": float(np.median(centre[chosen & fields["reliable"].values])),
            "orientation_deg": float(np.median(orientation[chosen])),
            "running_sign": float(running[chosen].mean()),
        }
        for name, chosen in groups.items()
    ]


def _result(experiment, twin, folder: Path):
    if folder.exists():
        stored = Result.load(folder)
        if stored.receipt.parameters == experiment.to_dict():
            return stored.dataset
    return perform(experiment, twin, folder, force=folder.exists(), where="docs/insilico_truth.py").dataset


def table(rows: list[dict]) -> str:
    head = "| mouse | neurons | n | score / ceiling | with a field | centre error [px] | orientation error [deg] | running sign |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['mouse']} | {row['neurons']} | {row['n']} | {row['quality']:.2f} | {row['with_field']:.0%} "
            f"| {row['centre_px']:.2f} | {row['orientation_deg']:.1f} | {row['running_sign']:.0%} |"
        )
    bounds = f"at most {BOUNDS['centre']:g} | at most {BOUNDS['orientation']:g} | at least {BOUNDS['running']:.0%}"
    lines.append(f"| target | reliable | | | | {bounds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
