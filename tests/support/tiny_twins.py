"""Twins that are small enough for unit tests: mice with random statistics, small models, recordings of a few trials."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.checkpoints.checkpoint import Checkpoint
from training.config import ModelConfig, TrainingConfig, parse_config
from training.data.layout import SENSORIUM_BEHAVIOR, BehaviorChannel, channel_names
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.models import Twin
from training.simulation.simulate import simulate
from training.trainer.run_spec import RunSpec

__all__ = [
    "QUICK",
    "competition_recording",
    "tiny_checkpoint",
    "tiny_config",
    "tiny_inputs",
    "tiny_mouse",
    "tiny_recordings",
    "tiny_run",
    "tiny_twin",
]

IMAGE_SHAPE = (1, 18, 32)
TINY_CORES: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 4, "patch_stride": 3, "n_blocks": 2, "n_heads": 2, "dim": 6, "mlp_dim": 8},
    "cct": {"patch_size": 4, "patch_stride": 2, "n_blocks": 2, "n_heads": 2, "dim": 8, "mlp_dim": 8},
    "cnn": {"n_layers": 3, "channels": 4, "input_kernel": 5, "hidden_kernel": 3},
    "ln": {"n_layers": 3, "channels": 4, "input_kernel": 5, "hidden_kernel": 3},
}
NO_DROPOUT = {"patch_dropout": 0.0, "block_dropout": 0.0}
QUICK = TrainingConfig(batch_size=8, learning_rate=0.01, max_epochs=2, readout_start="random")


def tiny_config(core: dict[str, Any] | None = None, **options: Any) -> ModelConfig:
    """A model with a few hundred weights, without dropout; `core` and the options replace parts of it."""
    core = core or {}
    kind = core.get("kind", "vit")
    dropout = NO_DROPOUT if kind in ("vit", "cct") else {"dropout": 0.0}
    behavior = "channels" if kind in ("cnn", "ln") else "b_mlp"
    content = {"behavior": behavior, "cropper": {"size": (12, 20)}, "readout": {"hidden": 4}, **options}
    return parse_config({**content, "core": {"kind": kind, **TINY_CORES[kind], **dropout, **core}})


def tiny_run(
    recordings: dict[str, Recording],
    model: ModelConfig | None = None,
    training: TrainingConfig = QUICK,
    **options: Any,
) -> RunSpec:
    """A run of tiny twins; `options` are those of `RunSpec`."""
    return RunSpec(model=model or tiny_config(), training=training, recordings=recordings, **options)


def tiny_mouse(
    mouse_id: str,
    *,
    n_neurons: int = 5,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    seed: int = 0,
    behavior: tuple[BehaviorChannel, ...] = SENSORIUM_BEHAVIOR,
) -> Mouse:
    """A mouse like a recorded one, with random statistics and ids with gaps."""
    rng = np.random.default_rng([seed, *mouse_id.encode()])

    def statistics(length: int) -> InputStatistics:
        mean, std, spread = (rng.uniform(1, 3, length).astype(np.float32) for _ in range(3))
        return InputStatistics(mean=mean, std=std, min=mean - spread, max=mean + spread, median=mean)

    return Mouse(
        mouse_id=mouse_id,
        data_key="90001-1-1",
        image_shape=image_shape,
        image_channels=channel_names(image_shape[0]),
        neuron_ids=np.sort(rng.permutation(10 * n_neurons)[:n_neurons]),
        neuron_coordinates=rng.uniform(-500, 500, (n_neurons, 3)).astype(np.float32),
        images=statistics(image_shape[0]),
        behavior_channels=behavior,
        behavior=statistics(len(behavior)),
        pupil_center=statistics(2),
        response_mean=rng.uniform(0.5, 2, n_neurons).astype(np.float32),
        response_std=rng.uniform(0.5, 2, n_neurons).astype(np.float32),
        percentiles={name: {"5": 1.0, "95": 3.0} for name, _ in behavior},
        data_hash=f"{rng.integers(2**32):064x}",
    )


def tiny_twin(config: ModelConfig, mice: list[Mouse] | None = None, *, seed: int = 0) -> Twin:
    """A twin in evaluation mode. All parameters are random, as some initial values have no effect."""
    mice = [tiny_mouse("A"), tiny_mouse("B", n_neurons=3)] if mice is None else mice
    torch.manual_seed(seed)
    twin = Twin(config, mice)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return twin.eval()


def tiny_checkpoint(config: ModelConfig, mice: list[Mouse] | None = None, *, seed: int = 0) -> Checkpoint:
    return Checkpoint(twin=tiny_twin(config, mice, seed=seed), provenance={"source": "trained", "seed": seed})


def tiny_inputs(mouse: Mouse, n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """image (n, C, H, W), behavior (n, K), pupil_center (n, 2), random in the mouse's units."""
    rng = np.random.default_rng([seed, *mouse.mouse_id.encode()])
    shapes = (mouse.image_shape, (mouse.n_behavior,), (2,))
    image, behavior, pupil_center = (
        torch.from_numpy(rng.normal(2, 2, (n, *shape)).astype(np.float32)) for shape in shapes
    )
    return image, behavior, pupil_center


def tiny_recordings(folder: Path, *, n_train: tuple[int, ...] = (20, 13), **options: Any) -> list[Recording]:
    """Simulated recordings of mice SIM1, SIM2, ..., with these numbers of training trials."""
    sizes = {"n_validation": 8, "n_test_images": 4, "n_test_repeats": 3, "image_shape": IMAGE_SHAPE, **options}
    recordings = []
    for i, n in enumerate(n_train, start=1):
        arguments = {"mouse_id": f"SIM{i}", "data_key": f"9000{i}-1-1", "n_neurons": 4 + i, "n_train": n, **sizes}
        recordings.append(Recording.open(simulate(folder, **arguments)))
    return recordings


def competition_recording(folder: Path, data_key: str, *, behavior: bool = True, **options: Any) -> Recording:
    """A simulated recording like those of the Sensorium competition, with zeroed test responses and hashed trial ids.

    A third of the test images are the final test. Without `behavior` there is neither behaviour nor pupil centre.
    """
    mouse_id = {"26872-17-20": "S0", "27204-5-13": "S1"}[data_key]
    sizes = {"n_neurons": 6, "n_train": 20, "n_validation": 8, "n_test_images": 6, "n_test_repeats": 3, **options}
    path = simulate(folder, mouse_id=mouse_id, data_key=data_key, **{"image_shape": IMAGE_SHAPE, **sizes})
    trials = path / "meta" / "trials"
    tiers, image_ids = (np.load(trials / f"{name}.npy") for name in ("tiers", "frame_image_id"))
    tiers = tiers.astype("<U10")
    tiers[(tiers == "test") & (image_ids % 3 == 0)] = "final_test"
    np.save(trials / "tiers.npy", tiers)
    ids = np.load(trials / "trial_idx.npy")
    np.save(trials / "trial_idx.npy", np.array([hashlib.sha256(b"%d" % i).hexdigest()[:16] for i in ids]))
    for trial in np.flatnonzero(np.isin(tiers, ["test", "final_test"])):
        np.save(path / f"data/responses/{trial}.npy", np.zeros(sizes["n_neurons"], np.float32))
    if not behavior:
        for name in ("behavior", "pupil_center"):
            shutil.rmtree(path / "data" / name)
            shutil.rmtree(path / "meta" / "statistics" / name)
    return Recording.open(path)
