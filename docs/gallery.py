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
from matplotlib.figure import Figure
from PIL import Image

from training.analyses.retinotopy import cortical_correlation
from training.checkpoints.ensemble import load_ensemble
from training.models.image_positions import image_positions
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
    gallery.training(
        f"import {shlex.quote(str(options.weights.resolve()))} --output {work / 'checkpoint'}", "checkpoint"
    )
    export = f"export {work / 'checkpoint'} --output {work / 'bundle'} --name sensorium_p_sota_model"
    gallery.training(export, "bundle")

    fields_command = f"rf {MOUSE} --images {options.images} --noise white --chunk 400 {STATE}"
    fields_said, fields = gallery.v1t("rf", fields_command)
    data = fields.dataset
    clearest = np.argsort(-np.where(data["reliable"], data["peak"], -1), kind="stable")[: options.neurons]
    ids = ",".join(str(i) for i in sorted(data["neuron"].values[clearest].tolist()))
    tuning_command = f"tuning {MOUSE} --neuron-ids {ids} {STATE}"
    tuning_said, _ = gallery.v1t("tuning", tuning_command)
    mei_command = f"mei {MOUSE} --neuron-ids {ids} --recipe quick --starts 1 --noise 100 {STATE}"
    mei_said, _ = gallery.v1t("mei", mei_command)

    (member,) = load_ensemble([work / "checkpoint"]).members
    positions = image_positions(member.twin, MOUSE).double().numpy()
    cortex = member.twin.readout(MOUSE).source_grid.double().numpy()
    with styled():
        figure = Positions(data, positions, cortex)
        drawing = figure.draw()
    page = f"""\
# Gallery: experiments on a real twin

The twin is `sensorium_p_sota_model`, the CNN baseline of the Sensorium 2022 competition (Willeke et al. 2022, MIT licence), of
mouse 27204-5-13: {len(data["neuron"]):,} neurons, images of 36 x 64 px, imported from its published weights. All figures and numbers on
this page are made by

```sh
python docs/gallery.py path/to/sensorium_p_sota_model.pth --images {options.images} --neurons {options.neurons}
```

The weights come without the recording, so inputs are standardised and behaviour must be given; `$STATE` below stands for
`{STATE}`. With a recording (`import --recordings`) it can be left out.

## Receptive fields

```sh
v1t rf {MOUSE} --bundle runs/gallery/bundle --images {options.images} --noise white $STATE --output rf
```

{fields_said.replace(chr(10), "; ")}. The {SHOWN} clearest fields, each with the ellipse of its Gaussian fit and its peak over chance:

{gallery.picture(work / "rf" / "maps.png", "receptive-fields")}

## Retinotopy

The noise maps do not use the positions of the readout, which the bundle holds in pixels of the image. Over the {figure.n:,} neurons
with a reliable map, the centres of their fields (from a Gaussian fitted to the map's energy) correlate with them at {figure.r[0]:.3f} (x) and
{figure.r[1]:.3f} (y), and lie {figure.off[0]:.1f} px (x) and {figure.off[1]:.1f} px (y) from them (median); cortical position explains {figure.cortical[0]:.0%} and {figure.cortical[1]:.0%} of
the variance of the centres. Neurons with the same colour have the same position on the screen; the line is where both are equal:

{gallery.picture(drawing, "retinotopy", colors=256)}

## Orientation tuning

```sh
v1t tuning {MOUSE} --bundle runs/gallery/bundle --neuron-ids {ids} $STATE --output tuning
```

{tuning_said.replace(chr(10), "; ")}.

An orientation is the direction along which the wave runs. The line is the preferred orientation: of a von Mises fit, or of the
vector sum where the fit failed, for example because of two peaks.

{gallery.picture(work / "tuning" / "orientation.png", "orientation")}

## Most exciting inputs

```sh
v1t mei {MOUSE} --bundle runs/gallery/bundle --neuron-ids {ids} --recipe quick --starts 1 --noise 100 $STATE --output mei
```

{mei_said.replace(chr(10), "; ")}.

{gallery.picture(work / "mei" / "mei.png", "most-exciting-inputs")}
"""
    (ROOT / "docs" / "gallery.md").write_text(page, encoding="utf-8")
    print(f"with the readout: {figure.r.round(3)}; wrote docs/gallery.md")


class Positions:
    """Centres of receptive fields against readout positions, both in pixels of the image, and against cortex.

    Attributes:
        n: neurons with a reliable map.
        r, off: (2,) for x and y, the correlation with the readout's positions, and the median distance to them [px].
        cortical: (2,) the share of the centres' variance that cortical position explains.
    """

    def __init__(self, data, positions: np.ndarray, cortex: np.ndarray) -> None:
        reliable = data["reliable"].values
        self.centers = np.stack([data["envelope_x"].values, data["envelope_y"].values], axis=1)[reliable]
        self.positions, self.cortex, self.n = positions[reliable], cortex[reliable], int(reliable.sum())
        self.r = np.array([np.corrcoef(self.positions[:, k], self.centers[:, k])[0, 1] for k in range(2)])
        self.off = np.median(np.abs(self.positions - self.centers), axis=0)
        self.cortical = cortical_correlation(self.centers, self.cortex) ** 2

    def draw(self) -> Figure:
        figure = Figure(figsize=(174 / 25.4, 2.0))
        screen, cortex, *readouts = figure.subplots(1, 4)
        colors = screen_colors(*self.centers.T)
        screen.scatter(*self.centers.T, c=colors, s=3, linewidth=0)
        screen.set(title="receptive fields", xlabel="centre x [px]", ylabel="centre y [px]")
        screen.invert_yaxis()  # as on the screen
        cortex.scatter(*self.cortex.T, c=colors, s=3, linewidth=0)
        cortex.set(title="the same neurons in cortex", xlabel="x, normalised", ylabel="y, normalised")
        for axes, k, name in ((readouts[0], 0, "x"), (readouts[1], 1, "y")):
            axes.scatter(self.positions[:, k], self.centers[:, k], s=2, color="#24292f", alpha=0.4, linewidth=0)
            axes.axline((self.positions[:, k].mean(),) * 2, slope=1, color="#cf5a00", linewidth=0.8)
            axes.set(xlabel=f"readout {name} [px]", ylabel=f"centre {name} [px]")
        figure.suptitle(f"mouse {MOUSE}, {self.n:,} neurons with a reliable map", fontsize=6.5)
        return figure


if __name__ == "__main__":
    main()
