"""`python -m training simulate`: recordings of simulated mice, in the same layout as real recordings.

Writes a folder per mouse in the Sensorium 2022 layout (`training.data.layout`). Beside `data/` and `meta/` it contains
`simulated_truth.npz`, to check experiments against:

    expected_responses  (T, N) by file number: the mean over noise, the best that any model can predict
    ceiling             (N,) correlation between expected and recorded single test trials
    reliability         (N,) split-half correlation of the test images' mean responses (Spearman-Brown)
    ...                 every attribute of `training.simulation.cortex.Cortex`; `load_cortex` reads them

Images are stored as bytes, a quarter of the disk space of float32. `meta/simulated.json` contains the parameters and
marks the recording as simulated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.data.layout import SIMULATED, TRUTH
from training.data.recording_files import write_neurons, write_statistics, write_trial_meta, write_trials
from training.errors import ConfigError, RecordingError
from training.metrics import single_trial_correlation, split_half_reliability
from training.simulation.behavior import simulate_behavior
from training.simulation.cortex import Cortex
from training.simulation.stimuli import dead_leaves
from training.tables import counted

__all__ = ["add_arguments", "run", "simulate"]

VERSION = 1  # of the simulation; to be increased when the same parameters give other recordings


def simulate(
    output: str | os.PathLike[str],
    *,
    mouse_id: str,
    data_key: str,
    n_neurons: int = 200,
    n_train: int = 1500,
    n_validation: int = 200,
    n_test_images: int = 100,
    n_test_repeats: int = 10,
    seed: int = 0,
    image_shape: tuple[int, int, int] = (1, 144, 256),
    monochrome_share: float = 0.0,
) -> Path:
    """Writes one mouse's recording; returns its folder in `output`. The same arguments give the same files.

    The name of the folder depends on all parameters, so a folder that exists already is kept. Mice with the same seed
    share the test images and their image ids, as real ones do.

    Args:
        mouse_id: such as "SIM1".
        data_key: animal-session-scan, three numbers such as "90001-1-1".
        n_test_images: each of them is shown `n_test_repeats` times.
        image_shape: (C, H, W).
        monochrome_share: share of the images with equal channels; Dataset F showed coloured and monochrome ones.

    Raises:
        ConfigError: a parameter is invalid.
        RecordingError: the disk is full, or `output` cannot be written.
    """
    parameters = {
        "version": VERSION,
        "mouse_id": mouse_id,
        "data_key": data_key,
        "n_neurons": n_neurons,
        "n_train": n_train,
        "n_validation": n_validation,
        "n_test_images": n_test_images,
        "n_test_repeats": n_test_repeats,
        "seed": seed,
        "image_shape": list(image_shape),
        **({"monochrome_share": monochrome_share} if monochrome_share else {}),
    }
    _check(parameters)
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    kind = "Gray" if image_shape[0] == 1 else "Color"
    folder = Path(output) / f"static{data_key}-{kind}ImageNet-simulated{digest}"
    if folder.exists():
        return folder

    mouse = zlib.crc32(mouse_id.encode())
    rngs = [np.random.default_rng(stream) for stream in np.random.SeedSequence([seed, mouse]).spawn(4)]
    cortex_rng, image_rng, behavior_rng, noise_rng = rngs
    own = n_train + n_validation
    images = np.concatenate(
        [
            dead_leaves(n_test_images, image_shape=image_shape, rng=np.random.default_rng(seed), description="test"),
            dead_leaves(own, image_shape=image_shape, rng=image_rng, description="train"),
        ]
    )  # (I, C, H, W)
    for part, stream in ((images[:n_test_images], [seed, 1]), (images[n_test_images:], [seed, mouse, 1])):
        chosen = np.random.default_rng(stream).permutation(len(part))[: round(monochrome_share * len(part))]
        part[chosen] = part[chosen, :1]
    image_ids = np.concatenate([np.arange(n_test_images), (1 + mouse) * 10**6 + np.arange(own)])
    tiers = np.repeat(["test", "train", "validation"], [n_test_images, n_train, n_validation])
    repeats = np.where(tiers == "test", n_test_repeats, 1)
    shown = behavior_rng.permutation(np.repeat(np.arange(len(images)), repeats))  # (T,) in order of time
    behavior = simulate_behavior(len(shown), behavior_rng)
    time = behavior_rng.permutation(len(shown))  # (T,) index in time, by file number
    shown, tiers = shown[time], tiers[shown[time]]
    inputs = {"behavior": behavior.behavior[time], "pupil_center": behavior.pupil_center[time]}

    cortex = replace(
        Cortex.grow(n_neurons, image_shape=image_shape, rng=cortex_rng),
        gaze_rest=inputs["pupil_center"].mean(0),
        dilation_scale=np.array([inputs["behavior"][:, 0].mean(), inputs["behavior"][:, 0].std()]),
    )
    drive = cortex.drive(images[shown], inputs["pupil_center"])  # (T, N)
    train, test = tiers == "train", tiers == "test"
    cortex = cortex.calibrated(drive[train], inputs["behavior"][train], cortex_rng)
    expected = cortex.combine(drive, inputs["behavior"])
    inputs["responses"] = cortex.respond(expected, noise_rng)
    truth = {
        "expected_responses": expected,
        "ceiling": single_trial_correlation(inputs["responses"][test], expected[test]),
        "reliability": split_half_reliability(inputs["responses"][test], image_ids[shown[test]]),
    }
    summary = {name: float(truth[name][cortex.responsive].mean()) for name in ("ceiling", "reliability")}
    with _written(folder) as temporary:
        write_trials(temporary, images, shown, inputs)
        write_trial_meta(temporary, tiers=tiers, trial_ids=time, image_ids=image_ids[shown], color=image_shape[0] > 1)
        write_neurons(temporary, _neurons(cortex, animal=int(data_key.split("-")[0]), rng=cortex_rng))
        write_statistics(temporary, images[shown[train]], {name: values[train] for name, values in inputs.items()})
        np.savez(temporary / TRUTH, **truth, **cortex.arrays())  # type: ignore[arg-type]
        about = {"mouse_id": mouse_id, "parameters": parameters, "responsive_neurons_mean": summary}
        (temporary / SIMULATED).write_text(json.dumps(about, indent=2) + "\n")
    return folder


def _check(parameters: dict[str, Any]) -> None:
    least = {"n_neurons": 1, "n_train": 2, "n_validation": 0, "n_test_images": 2, "n_test_repeats": 2, "seed": 0}
    for name, lowest in least.items():
        if parameters[name] < lowest:
            raise ConfigError(f"{name} is too small to simulate", got=parameters[name], expected=f"{lowest} or more")
    shape = parameters["image_shape"]
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 16:
        raise ConfigError("image_shape is invalid", got=shape, expected="(C, H, W) with at least 16 rows and columns")
    share = parameters.get("monochrome_share", 0)
    if not 0 <= share <= 1 or (share and shape[0] == 1):
        raise ConfigError("monochrome_share is invalid", got=share, expected="0 to 1, for images of several channels")
    numbers = parameters["data_key"].split("-")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ConfigError(
            "data_key is not animal-session-scan", got=parameters["data_key"], expected="such as 90001-1-1"
        )


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `folder` at the end of the block."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        if folder.exists():  # another process has written the same recording
            return
        raise RecordingError(f"simulated recording {str(folder)!r} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _neurons(cortex: Cortex, *, animal: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    N = cortex.n_neurons
    return {
        "unit_ids": np.sort(rng.permutation(10 * N)[:N] + 1),  # with gaps: an id is not an index
        "cell_motor_coordinates": cortex.coordinates,
        "animal_ids": np.full(N, animal),
        "area": np.full(N, "V1"),
        "layer": np.where(cortex.coordinates[:, 2] < 310, "L2/3", "L4"),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it gets a recording per mouse")
    parser.add_argument("--mice", type=int, default=2, help="number of mice (default: %(default)s)")
    prefix = "of the names of the mice, MYSIM1, MYSIM2, ...; those of the demo are SIM1 and SIM2 (default: %(default)s)"
    parser.add_argument("--mouse-prefix", default="MYSIM", metavar="NAME", help=prefix)
    parser.add_argument("--neurons", type=int, default=200, help="neurons per mouse (default: %(default)s)")
    parser.add_argument("--train-trials", type=int, default=1500, help="(default: %(default)s)")
    parser.add_argument("--validation-trials", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=100, help="shared by all mice (default: %(default)s)")
    parser.add_argument("--test-repeats", type=int, default=10, help="of each test image (default: %(default)s)")
    parser.add_argument(
        "--image-shape", type=int, nargs=3, default=(1, 144, 256), metavar=("C", "H", "W"), help="(default: 1 144 256)"
    )
    share = "share of the images with equal channels, for images of several channels (default: %(default)s)"
    parser.add_argument("--monochrome-share", type=float, default=0.0, metavar="SHARE", help=share)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.mice < 1:
        raise ConfigError("no mouse to simulate", got=args.mice, expected="--mice 1 or more")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", args.mouse_prefix):
        raise ConfigError("--mouse-prefix is invalid", got=repr(args.mouse_prefix), expected="letters, digits, - and _")
    for mouse in range(1, args.mice + 1):
        mouse_id = f"{args.mouse_prefix}{mouse}"
        folder = simulate(
            args.output,
            mouse_id=mouse_id,
            data_key=f"{90_000 + mouse}-1-{args.seed + 1}",
            n_neurons=args.neurons,
            n_train=args.train_trials,
            n_validation=args.validation_trials,
            n_test_images=args.test_images,
            n_test_repeats=args.test_repeats,
            seed=args.seed,
            image_shape=tuple(args.image_shape),
            monochrome_share=args.monochrome_share,
        )
        means = json.loads((folder / SIMULATED).read_text())["responsive_neurons_mean"]
        print(
            f"{mouse_id}  {folder}\n"
            f"      {counted(args.neurons, 'neuron')}; mean over responsive ones: split-half reliability "
            f"{means['reliability']:.3f}, ceiling of the single-trial correlation {means['ceiling']:.3f}"
        )
    return 0
