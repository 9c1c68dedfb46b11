"""What `describe` says is what can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_inputs, tiny_mouse

from training.__main__ import main
from training.checkpoints.checkpoint import save_checkpoint
from training.checkpoints.describe import count_gflop, describe
from training.config import ModelConfig
from training.models import Twin
from training.models.attention import Attention

MOUSE = tiny_mouse("A", n_neurons=60, image_shape=(1, 144, 256))


def numbers(text: str) -> dict[str, float]:
    """The last number of every line, by the words before it."""
    found = {}
    for line in text.splitlines():
        *words, last = line.split()
        if words and last.replace(",", "").replace(".", "").isdecimal():
            found[" ".join(words)] = float(last.replace(",", ""))
    return found


def test_the_published_configuration_costs_34_gflop() -> None:
    twin = Twin(ModelConfig(), [MOUSE]).eval()
    cost = count_gflop(twin)
    assert cost["core"] == pytest.approx(34.3, rel=0.01)
    # By hand, a multiply-add as two: 1 + 29 * 57 tokens, 4 heads as wide as the embedding.
    L, D, h, mlp, blocks = 1 + 29 * 57, 155, 4, 488, 4
    attention = 2 * L * D * 3 * h * D + 2 * h * L * L * D * 2 + 2 * L * h * D * D
    b_mlp = 2 * (5 * (D // 2) + (D // 2) * D)
    by_hand = blocks * (attention + 2 * L * D * mlp * 2 + b_mlp) + 2 * (L - 1) * 64 * D
    assert cost["core"] == pytest.approx(by_hand / 1e9, rel=1e-3)
    # Bilinear sample and weights of 60 neurons: five multiply-adds a feature, and the position network and the shifter.
    small = 2 * 60 * (2 * 30 + 30 * 2) + 2 * (2 * 5 + 5 * 5 + 5 * 2)
    assert cost["readout A"] == pytest.approx((10 * 60 * D + small) / 1e9, rel=1e-3)


def test_parameters_are_those_of_the_papers_equations() -> None:
    config = ModelConfig()
    twin = Twin(config, [MOUSE, tiny_mouse("B", n_neurons=40, image_shape=(1, 144, 256))]).eval()
    D, h, mlp, L = 155, 4, 488, 1 + 29 * 57
    tokenizer = 64 * D + D + D + L * D
    attention = 2 * D + 3 * h * D * D + h * D * D + D
    feed_forward = 2 * D + D * mlp + mlp + mlp * D + D
    b_mlp = 5 * 77 + 77 + 77 * D + D
    core = tokenizer + 4 * (attention + feed_forward + b_mlp)
    shifters = 2 * (2 * 5 + 5 + 5 * 5 + 5 + 5 * 2 + 2)
    network = 2 * 30 + 30 + 30 * 2 + 2
    readouts = {"A": 60 * (D + 1 + 4) + network, "B": 40 * (D + 1 + 4) + network}
    assert sum(p.numel() for p in twin.core.parameters()) == core
    assert sum(p.numel() for p in twin.readout("A").parameters()) == readouts["A"]
    assert sum(p.numel() for p in twin.readout("B").parameters()) == readouts["B"]
    assert sum(p.numel() for p in twin.parameters()) == core + shifters + sum(readouts.values())


@pytest.mark.parametrize("core", ["vit", "cct", "cnn", "ln"])
def test_the_text_says_parts_mice_and_cost(core: str) -> None:
    checkpoint = tiny_checkpoint(tiny_config({"kind": core}, cropper={"size": (12, 20), "shifter": "pupil_center"}))
    text = describe(checkpoint)
    twin = checkpoint.twin
    said = numbers(text)
    assert said["core"] == pytest.approx(count_gflop(twin)["core"], abs=1e-3)  # the cost stands last
    assert said["all"] == sum(p.numel() for p in twin.parameters())
    parts = ["cropper", "shifters"]
    assert [said[part] for part in parts] == [
        sum(p.numel() for p in getattr(twin, part).parameters()) for part in parts
    ]
    assert f"kind: {core}" in text
    assert "5 neurons, image (1, 18, 32), the recording's units" in text
    assert "seed: 0" in text


def test_counting_leaves_the_twin_as_it_was() -> None:
    twin = tiny_checkpoint(tiny_config()).twin
    inputs = tiny_inputs(twin.mice["A"], 2)
    with torch.inference_mode():
        before = twin("A", *inputs)
        count_gflop(twin)
        assert torch.equal(twin("A", *inputs), before)
    assert all(module.kernel == "fused" for module in twin.modules() if isinstance(module, Attention))


def test_the_command_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(tiny_config()))
    assert main(["describe", str(folder)]) == 0
    assert "cost of one image [GFLOP]" in capsys.readouterr().out
    assert main(["describe", str(tmp_path)]) == 1
    assert "is not a checkpoint" in capsys.readouterr().err
