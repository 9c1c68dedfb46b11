"""How many noise images receptive fields take, by the kind of noise: a table, in one run.

    python tests/perf/bench_noise.py [--bundle BUNDLE] [--mouse MOUSE] [--neurons 150] [--images 24000] [--blocks 3]
    python tests/perf/bench_noise.py --noise-only [--bundle BUNDLE] [--mouse MOUSE] [--neurons 150]

Maps the fields with each kind of noise, and after growing numbers of images compares the fits with a reference:
balanced noise of another seed over `--reference` blocks. Prints the least number of images from which the centres are
within 0.5 px and the sizes within 5 % of the reference, for the median neuron and for 9 in 10, and when `--until 0.05`
stops. `--noise-only` prints the noise of a map over that of white noise of as many images, measured over two blocks
without a reference, and how many images of white noise one block is worth. Neither depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "clients" / "python"))

from v1t_client.insilico import open_predictor
from v1t_client.insilico.experiments.mapped_fields import MappedFields
from v1t_client.insilico.experiments.noise_mapping import Halves, Noise, noise_sums
from v1t_client.insilico.experiments.receptive_fields import ReceptiveFields
from v1t_client.insilico.fitting.gaussian import GaussianFit, fit_gaussians
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.noise import NoiseKind, NoiseSums, noise_grid

CENTER, SIZE = 0.5, 0.05  # px; relative
STEPS = 1.15  # between two numbers of images that are not whole blocks
# of a twin without statistics of its recording, as in docs/gallery.md
GIVEN: dict[str, Any] = {
    "running_speed": 0.5, "pupil_dilation": 2.0, "pupil_dilation_derivative": 0.0, "pupil_center": (0.0, 0.0)
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("exported_models/demo"))
    parser.add_argument("--mouse", default="SIM1")
    parser.add_argument("--neurons", type=int, default=150, help="how many, spread evenly over the mouse's")
    parser.add_argument("--noise-only", action="store_true")
    parser.add_argument("--images", type=int, default=24_000, help="at most, of white and antithetic noise")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of balanced noise, at most")
    parser.add_argument("--reference", type=int, default=6, help="blocks of balanced noise of the reference")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with open_predictor(options.bundle) as twin:
        given = GIVEN if twin.mouse(options.mouse).standardized_inputs else {}
        ids = twin.neurons(options.mouse).neuron_ids
        ids = ids[:: max(1, len(ids) // options.neurons)][: options.neurons]
        experiment = ReceptiveFields(mouse=options.mouse, neuron_ids=tuple(ids.tolist()), seed=options.seed, **given)
        subject = experiment.subject(twin)
        grid = noise_grid(subject.mouse.image_shape)
        if options.noise_only:
            _print_noise(subject, grid, options.seed)
            return
        factor = subject.mouse.image_shape[1] // grid[0]
        balanced = Noise("balanced", options.seed + 1000, grid, 1.0)
        sums = NoiseSums.empty(len(subject), grid)
        for block in range(options.reference):
            sums.add(noise_sums(subject, balanced, first=block * balanced.block, n=balanced.block))
        reference = _fit(sums)
        clear = reference.ok & (np.abs(sums.weighted_average()).max((1, 2)) > 6 * _noise(sums))
        print(
            f"{subject.model.name}, mouse {options.mouse}, {clear.sum()} of {len(subject)} neurons with a field,",
            end=" ",
        )
        print(f"median sigma {np.median(_size(reference)[clear]) * factor:.1f} px; reference: {sums.n_images:,} images")
        print("| noise | centre, median | size, median | centre, 9 in 10 | size, 9 in 10 | stops at (--until 0.05) |")
        print("|---|---|---|---|---|---|")
        for kind in get_args(NoiseKind):
            noise = Noise(kind, options.seed, grid, 1.0)
            _row(subject, noise, options, reference, clear, factor)


def _print_noise(subject: Subject, grid: tuple[int, int], seed: int) -> None:
    print(
        f"{subject.model.name}, {len(subject)} neurons of mouse {subject.mouse.mouse_id}, maps of {grid[0]} x {grid[1]}"
    )
    print("| noise | images in a block | noise of a map, over that of white noise | a block is worth white images |")
    print("|---|---|---|---|")
    for kind in get_args(NoiseKind)[1:]:
        noise = Noise(kind, seed, grid, 1.0)
        half = noise.block * max(1, 1000 // noise.block)
        first, second = (noise_sums(subject, noise, first=i * half, n=half) for i in range(2))
        halves = Halves((first, second))
        ratio = np.median(halves.chance(noise) / halves.total.chance())
        print(f"| {kind} | {noise.block:,} | {ratio:.2f} | {noise.block / ratio**2:,.0f} |", flush=True)


def _row(
    subject: Subject, noise: Noise, options: argparse.Namespace, reference: GaussianFit, clear: np.ndarray, factor: int
) -> None:
    is_whole = noise.kind in ("orthogonal", "balanced")
    most = options.blocks * Noise("balanced", 0, noise.grid, 1.0).block if is_whole else options.images
    numbers = range(noise.block, most + 1, noise.block) if is_whole else _growing(most)
    halves = Halves((NoiseSums.empty(len(subject), noise.grid), NoiseSums.empty(len(subject), noise.grid)))
    errors, stopped = {}, 0
    for i, (first, n) in enumerate(zip([0, *numbers], numbers, strict=False)):
        halves.parts[i % 2].add(noise_sums(subject, noise, first=first, n=n - first))
        fit = _fit(halves.total)
        center = factor * np.hypot(*(fit.center - reference.center).T)
        size = np.abs(_size(fit) / _size(reference) - 1)
        center[~fit.ok], size[~fit.ok] = np.inf, np.inf
        errors[n] = [np.quantile(error[clear], share) for share in (0.5, 0.9) for error in (center, size)]
        print(f"  {noise.kind} {n}: " + " ".join(f"{error:.3f}" for error in errors[n]), file=sys.stderr)
        if not stopped and i and n >= 2 * noise.block:
            found = MappedFields.of(halves.total, halves.chance(noise), seed=noise.seed, tick=lambda n: None)
            if found.known(SIZE):
                stopped = n
    cells = [_needed(errors, column, bound) for column, bound in enumerate((CENTER, SIZE, CENTER, SIZE))]
    print(f"| {noise.kind} | {' | '.join(cells)} | {f'{stopped:,}' if stopped else f'above {most:,}'} |", flush=True)


def _growing(most: int) -> list[int]:
    numbers = [1000]
    while numbers[-1] * STEPS <= most:
        numbers.append(2 * round(numbers[-1] * STEPS / 2))
    return numbers


def _fit(sums: NoiseSums) -> GaussianFit:
    maps = np.abs(sums.weighted_average())
    return fit_gaussians(maps / _noise(sums)[:, None, None])


def _noise(sums: NoiseSums) -> np.ndarray:
    """(n,) the noise of a map, from its median element."""
    return np.maximum(1.4826 * np.median(np.abs(sums.weighted_average()), axis=(1, 2)), 1e-12)


def _size(fit: GaussianFit) -> np.ndarray:
    return (fit.major + fit.minor) / 2


def _needed(errors: dict[int, list[float]], column: int, bound: float) -> str:
    """The least number of images from which on the error stays within the bound."""
    numbers = list(errors)
    above = [i for i, n in enumerate(numbers) if errors[n][column] > bound]
    first = above[-1] + 1 if above else 0
    return f"{numbers[first]:,}" if first < len(numbers) else f"above {numbers[-1]:,}"


if __name__ == "__main__":
    main()
