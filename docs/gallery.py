"""Makes `docs/gallery.md` and its figures, from the real weights of the Sensorium 2022 CNN of mouse 27204-5-13.

    python docs/gallery.py path/to/sensorium_p_sota_model.pth [--images 3000] [--neurons 20] [--work runs/gallery]

Imports and exports the weights, then runs the commands that the page shows: receptive fields of all neurons, compared
with the readout's positions and with cortex; orientation tuning and most exciting inputs of the neurons with the clearest
fields. Run it again to resume after an interruption. The weights come without the recording, so inputs are standardised,
neurons have no scores, and cortical positions are normalised.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients" / "python"))

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from training.analyses.retinotopy import cortical_correlation, readout_positions
from training.checkpoints.ensemble import load_ensemble
from v1t_client.insilico import Result, styled
from v1t_client.insilico.experiments.retinotopy import screen_colors

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images"
MOUSE = "S1"
SHOWN = 20  # maps in the figure of `v1t rf`
# Standardised behaviour is not centred, and the weights do not include its mean: a typical pupil, and slow running.
STATE = "--pupil-dilation 2 --pupil-dilation-derivative 0 --running-speed 0.5 --pupil-center 0 0"


class Gallery:
    """Runs the commands of the page in a work folder, unless their results exist."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.work.mkdir(parents=True, exist_ok=True)

    def training(self, arguments: str, output: str) -> None:
        """Runs `python -m training ...`, unless its output exists."""
        if not (self.work / output).exists():
            subprocess.run([sys.executable, "-m", "training", *shlex.split(arguments)], cwd=ROOT, check=True)

    def v1t(self, name: str, arguments: str) -> tuple[str, Result]:
        """Runs `v1t ...`, unless its result exists; returns its output and the result."""
        said = self.work / f"{name}.txt"
        if not (self.work / name).exists():
            command = [sys.executable, "-m", "v1t_client", *shlex.split(arguments), "--output", str(self.work / name)]
            command += ["--bundle", str(self.work / "bundle")]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            said.write_text(done.stdout)
        return said.read_text().strip(), Result.load(self.work / name)

    def picture(self, source: Path | Figure, name: str, *, width: int = 960, colors: int = 64) -> str:
        """Writes a small PNG to docs/images; returns the Markdown that shows it."""
        path = self.work / f"{name}.png"
        if isinstance(source, Figure):
            with styled():
                source.savefig(path)
        else:
            path = source
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if picture.width > width:
            picture = picture.resize((width, picture.height * width // picture.width), Image.Resampling.LANCZOS)
        target = PICTURES / f"gallery-{name}.png"
        picture.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
        return f"![{name}](images/{target.name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=3000, help="number of noise images")
    parser.add_argument("--neurons", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gallery")
    options = parser.parse_args()
    gallery = Gallery(options.work.resolve())
    work = gallery.work
    gallery.training(f"import {shlex.quote(str(options.weights.resolve()))} --output {work / 'checkpoint'}", "checkpoint")
    export = f"export {work / 'checkpoint'} --output {work / 'bundle'} --name sensorium_p_sota_model"
    gallery.training(export, "bundle")

    fields_command = f"rf {MOUSE} --images {options.images} --chunk 400 {STATE}"
    fields_said, fields = gallery.v1t("rf", fields_command)
    data = fields.dataset
    clearest = np.argsort(-np.where(data["reliable"], data["peak"], -1), kind="stable")[: options.neurons]
    ids = ",".join(str(i) for i in sorted(data["neuron"].values[clearest].tolist()))
    tuning_command = f"tuning {MOUSE} --neuron-ids {ids} {STATE}"
    tuning_said, _ = gallery.v1t("tuning", tuning_command)
    mei_command = f"mei {MOUSE} --neuron-ids {ids} --recipe quick --starts 1 --noise 100 {STATE}"
    mei_said, _ = gallery.v1t("mei", mei_command)

    ensemble = load_ensemble([work / "checkpoint"])
    mu = readout_positions(ensemble, MOUSE)
    cortex = ensemble.members[0].twin.readout(MOUSE).source_grid.numpy().astype(np.float64)
    shifter = ensemble.members[0].twin.shifters[MOUSE]
    shift = shifter(torch.zeros(1, 2))[0].tolist()
    with styled():
        with_mu, r2, n, figure = _positions(data, mu, cortex)
    page = f"""\
# Gallery: experiments on a real twin

The twin is `sensorium_p_sota_model`, the CNN baseline of the Sensorium 2022 competition (Willeke et al. 2022, MIT licence), of
mouse 27204-5-13: {len(data['neuron']):,} neurons, images of 36 x 64 px, imported from its published weights. All figures and numbers on
this page are made by

```sh
python docs/gallery.py path/to/sensorium_p_sota_model.pth --images {options.images} --neurons {options.neurons}
```

The weights come without the recording, so inputs are standardised and behaviour must be given; `$STATE` below stands for
`{STATE}`. With a recording (`import --recordings`) it can be left out.

## Receptive fields

```sh
v1t rf {MOUSE} --bundle runs/gallery/bundle --images {options.images} $STATE --output rf
```

{fields_said.replace(chr(10), "; ")}. The {SHOWN} clearest fields, each with the ellipse of its Gaussian fit and its peak over chance:

{gallery.picture(work / 'rf' / 'maps.png', 'receptive-fields')}

## Retinotopy

The noise maps do not use the readout's positions `mu`. Over the {n:,} neurons with a reliable map, the centres of their
fields (from a Gaussian fitted to the map's energy) correlate with `mu` at {with_mu[0]:.3f} (x) and {with_mu[1]:.3f} (y); cortical position explains {r2[0]:.0%} and {r2[1]:.0%} of their variance. All
fields are shifted from `mu` by the same amount, because the shifter moves them by {shift[0]:.2f} of the map's half width at pupil
centre (0, 0). Neurons with the same colour have the same position on the screen:

{gallery.picture(figure, 'retinotopy')}

## Orientation tuning

```sh
v1t tuning {MOUSE} --bundle runs/gallery/bundle --neuron-ids {ids} $STATE --output tuning
```

{tuning_said.replace(chr(10), "; ")}.

An orientation is the direction along which the wave runs. The line is the preferred orientation: of a von Mises fit, or of the
vector sum where the fit failed, for example because of two peaks.

{gallery.picture(work / 'tuning' / 'orientation.png', 'orientation')}

## Most exciting inputs

```sh
v1t mei {MOUSE} --bundle runs/gallery/bundle --neuron-ids {ids} --recipe quick --starts 1 --noise 100 $STATE --output mei
```

{mei_said.replace(chr(10), "; ")}.

{gallery.picture(work / 'mei' / 'mei.png', 'most-exciting-inputs')}
"""
    (ROOT / "docs" / "gallery.md").write_text(page, encoding="utf-8")
    print(f"with mu: {with_mu.round(3)}; wrote docs/gallery.md")


def _positions(data, mu: np.ndarray, cortex: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, Figure]:
    """Correlation of centres with mu, share of their variance that cortex explains, number of neurons, and a figure."""
    reliable = data["reliable"].values
    centers = np.stack([data["envelope_x"].values, data["envelope_y"].values], axis=1)[reliable]
    figure = Figure(figsize=(174 / 25.4, 2.0))
    axes = figure.subplots(1, 4)
    colors = screen_colors(*centers.T)
    for axis, places, title in (
        (axes[0], centers, "receptive fields [px]"),
        (axes[1], cortex[reliable], "neurons in cortex, normalised"),
    ):
        axis.scatter(*places.T, c=colors, s=3, linewidth=0)
        axis.set_title(title)
    axes[0].invert_yaxis()
    for axis, k, name in ((axes[2], 0, "x"), (axes[3], 1, "y")):
        axis.scatter(mu[reliable, k], centers[:, k], s=2, color="#24292f", alpha=0.4, linewidth=0)
        axis.set(xlabel=f"readout's mu, {name}", ylabel=f"centre {name} [px]")
    figure.suptitle(f"mouse {MOUSE}, {reliable.sum():,} reliable neurons", fontsize=6.5)
    with_mu = np.array([np.corrcoef(mu[reliable, axis], centers[:, axis])[0, 1] for axis in range(2)])
    return with_mu, cortical_correlation(centers, cortex[reliable]) ** 2, int(reliable.sum()), figure


if __name__ == "__main__":
    main()
