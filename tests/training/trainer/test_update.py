"""Two full updates of a twin of two mice in float64, against a model, a loss and an optimiser written here in numpy.

Every term is in it: the Poisson losses with their scale, the core's L1 once per mouse, each readout's own L1, drawn
readout positions, and AdamW. The gradient of every single parameter is the loss's slope.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from support.tiny_twins import tiny_config, tiny_recordings, tiny_twin

from training.config import TrainingConfig
from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.trainer.hardware import Hardware
from training.trainer.update import Update

DIM, HEADS, PATCH = 4, 2, 6
L1_CORE, L1_READOUT = 0.03, 0.05
CORE = {"patch_size": PATCH, "patch_stride": PATCH, "n_blocks": 1, "n_heads": HEADS, "dim": DIM, "mlp_dim": 5}
TRAINING = TrainingConfig(learning_rate=0.003)
Parameters = dict[str, np.ndarray]


def linear(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def layer_norm(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def feature_map(p: Parameters, image: np.ndarray, behavior: np.ndarray) -> np.ndarray:
    """image (B, 1, H, W), behavior (B, 5) -> (B, rows, columns, D)."""
    n, _, height, width = image.shape
    rows, columns = height // PATCH, width // PATCH
    cut = image[:, 0, : rows * PATCH, : columns * PATCH].reshape(n, rows, PATCH, columns, PATCH)
    patches = cut.transpose(0, 1, 3, 2, 4).reshape(n, rows * columns, PATCH * PATCH)
    tokens = linear(p, "core.tokenizer.projection", patches)
    cls = np.broadcast_to(p["core.tokenizer.cls_token"], (n, 1, DIM))
    x = np.concatenate([cls, tokens], 1) + p["core.tokenizer.position"]
    mlp = "core.transformer.behavior_mlps.0."
    hidden = np.tanh(behavior @ p[mlp + "hidden_weight"][0].T + p[mlp + "hidden_bias"][0])
    x = x + np.tanh(hidden @ p[mlp + "output_weight"][0].T + p[mlp + "output_bias"][0])[:, None]
    block = "core.transformer.blocks.0."
    qkv = linear(p, block + "attention.qkv", layer_norm(p, block + "attention.norm", x))
    q, k, v = qkv.reshape(n, -1, 3, HEADS, DIM).transpose(2, 0, 3, 1, 4)
    weights = np.exp(q @ k.transpose(0, 1, 3, 2) * DIM**-0.5)
    heads = (weights / weights.sum(-1, keepdims=True)) @ v  # (B, h, L, d)
    x = x + linear(p, block + "attention.output", heads.transpose(0, 2, 1, 3).reshape(n, -1, HEADS * DIM))
    up = linear(p, block + "mlp.up", layer_norm(p, block + "mlp.norm", x))
    x = x + linear(p, block + "mlp.down", up * (1 + erf(up / math.sqrt(2))) / 2)
    return x[:, 1:].reshape(n, rows, columns, DIM)


def sample(map_: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(B, rows, columns, D) at (B, N, 2) in [-1, 1], bilinear, zero outside -> (B, N, D)."""
    n, rows, columns, _ = map_.shape
    x, y = (positions[..., 0] + 1) / 2 * (columns - 1), (positions[..., 1] + 1) / 2 * (rows - 1)
    total = np.zeros((*x.shape, DIM))
    for i in (0, 1):
        for j in (0, 1):
            r, c = np.floor(y).astype(int) + i, np.floor(x).astype(int) + j
            weight = (1 - abs(y - r)) * (1 - abs(x - c))
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            found = map_[np.arange(n)[:, None], r.clip(0, rows - 1), c.clip(0, columns - 1)]
            total += (weight * inside)[..., None] * found
    return total


def mouse_loss(p: Parameters, recording: Recording, indices: np.ndarray, noise: np.ndarray) -> float:
    mouse = recording.mouse_id
    batch, statistics = recording.batch(indices), recording.statistics
    image = (batch.image.astype(float) - statistics.images.mean[:, None, None]) / statistics.images.std[:, None, None]
    behavior = batch.behavior.astype(float) / statistics.behavior.std
    pupil = (batch.pupil_center.astype(float) - statistics.pupil_center.mean) / statistics.pupil_center.std
    map_ = feature_map(p, image, np.concatenate([behavior, pupil], 1))
    xy = recording.neuron_coordinates[:, :2].astype(float)
    grid = (xy - xy.mean(0)) / np.abs(xy - xy.mean(0)).max()
    network = f"readouts.{mouse}.position_network."
    mu = np.tanh(linear(p, network + "2", elu(linear(p, network + "0", grid))))
    drawn = np.clip(mu + np.einsum("nij,bnj->bni", p[f"readouts.{mouse}.sigma"], noise), -1, 1)
    shift = pupil
    for layer in range(3):
        shift = np.tanh(linear(p, f"shifters.{mouse}.layers.{layer}", shift))
    features = p[f"readouts.{mouse}.features"]
    sampled = sample(map_, drawn + shift[:, None])
    y = elu((sampled * features).sum(-1) + p[f"readouts.{mouse}.bias"]) + 1
    r = batch.response.astype(float) / recording.response_std
    eps = np.finfo(np.float32).eps
    poisson = (y + eps - (r + eps) * np.log(y + eps)).sum()
    core = sum(float(np.abs(value).sum()) for name, value in p.items() if name.startswith("core."))
    scale = math.sqrt(len(recording.tier("train")) / len(indices))
    return float(scale * poisson + L1_CORE * core + L1_READOUT * np.abs(features).sum())


def slopes(p: Parameters, name: str, loss: Any, step: float = 1e-5) -> np.ndarray:
    """Central differences by every element of one parameter."""
    result = np.empty(p[name].size)
    flat = p[name].reshape(-1)
    for i, kept in enumerate(flat.copy()):
        flat[i] = kept + step
        above = loss()
        flat[i] = kept - step
        result[i] = (above - loss()) / (2 * step)
        flat[i] = kept
    return result.reshape(p[name].shape)


@pytest.mark.slow
def test_two_updates_are_those_of_numpy(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = {recording.mouse_id: recording for recording in tiny_recordings(tmp_path)}
    config = tiny_config(
        CORE | {"l1": L1_CORE},
        cropper={"size": None},
        readout={"hidden": 3, "l1": L1_READOUT},
    )
    mice = [Mouse.from_recording(recording) for recording in recordings.values()]
    twin = tiny_twin(config, mice, seed=1).double().train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.003, betas=(0.9, 0.9999), weight_decay=0.0)
    update = Update(twin, TRAINING, recordings, Hardware().fabric())
    rng = np.random.default_rng(0)
    p = {name: parameter.detach().numpy().copy() for name, parameter in twin.named_parameters()}
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in p.items()}
    for t in (1, 2):
        trials = {
            "SIM1": rng.permutation(recordings["SIM1"].tier("train").indices)[:4],
            "SIM2": rng.permutation(recordings["SIM2"].tier("train").indices)[:3],
        }
        noise = {
            mouse_id: rng.normal(size=(len(indices), recordings[mouse_id].n_neurons, 2))
            for mouse_id, indices in trials.items()
        }
        drawn = {tensor.shape: torch.from_numpy(tensor) for tensor in noise.values()}
        monkeypatch.setattr(torch, "randn_like", lambda like, drawn=drawn: drawn[tuple(like.shape)])
        optimizer.zero_grad()
        reported = update.gradients(trials)

        def loss_of(mouse_id: str, trials: Any = trials, noise: Any = noise) -> float:
            return mouse_loss(p, recordings[mouse_id], trials[mouse_id], noise[mouse_id])

        assert reported == pytest.approx(loss_of("SIM1") + loss_of("SIM2"), rel=1e-7)
        optimizer.step()
        expected = {
            # what belongs to one mouse changes its loss alone
            name: sum(
                slopes(p, name, lambda m=m: loss_of(m)) for m in recordings if f".{m}." in name or "core." in name
            )
            for name in p
        }
        for name, parameter in twin.named_parameters():
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad, expected[name], rtol=2e-5, atol=2e-6, err_msg=name)
            m, v = moments[name]
            m[:] = 0.9 * m + 0.1 * expected[name]
            v[:] = 0.9999 * v + 0.0001 * expected[name] ** 2
            p[name] -= 0.003 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.9999**t)) + 1e-8)
            np.testing.assert_allclose(parameter.detach(), p[name], rtol=0, atol=3e-7, err_msg=name)
