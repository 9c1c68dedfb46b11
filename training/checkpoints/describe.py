"""`python -m training describe`: a checkpoint's configuration, parameters, mice, and the cost of one image."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.checkpoints.ensemble import member_checkpoints
from training.models import Twin
from training.models.attention import Attention

__all__ = ["add_arguments", "count_gflop", "describe", "run"]


def describe(checkpoint: Checkpoint) -> str:
    """A description of about a screen."""
    twin = checkpoint.twin
    config = yaml.safe_dump(checkpoint.config.model_dump(mode="json"), sort_keys=False).rstrip()
    lines = ["configuration", *(f"  {line}" for line in config.splitlines()), "parameters"]
    parts: dict[str, nn.Module | None] = {"core": twin.core, "cropper": twin.cropper, "shifters": twin.shifters}
    parts |= {f"readout {mouse_id}": readout for mouse_id, readout in twin.readouts.items()}
    for name, part in parts.items():
        n = sum(p.numel() for p in part.parameters()) if part is not None else 0
        lines.append(f"  {name:<14}{n:>12,}")
    lines.append(f"  {'all':<14}{sum(p.numel() for p in twin.parameters()):>12,}")
    lines.append("mice")
    for mouse in twin.mice.values():
        units = "standardised inputs" if mouse.standardized_inputs else "the recording's units"
        simulated = ", simulated" if mouse.simulated else ""
        lines.append(
            f"  {mouse.mouse_id:<6}{mouse.data_key or '-':<14}{mouse.n_neurons:>6} neurons, image {mouse.image_shape}, "
            f"{units}{simulated}"
        )
    lines.append(f"core image {tuple(twin.cropper.output_shape)}, feature map {tuple(twin.core.output_shape)}")
    lines.append("cost of one image [GFLOP]")
    lines += [f"  {name:<14}{value:>12.3f}" for name, value in count_gflop(twin).items()]
    lines.append("provenance")
    lines += [f"  {key}: {value}" for key, value in checkpoint.provenance.items()]
    return "\n".join(lines)


def count_gflop(twin: Twin) -> dict[str, float]:
    """Floating-point operations of one image in 10^9, with a multiply-add as two: of the core and of each readout."""
    attentions = [module for module in twin.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.kernel = "eager"  # the counter does not count fused kernels
    try:
        costs = {}
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # counts without computing
            for i, (mouse_id, mouse) in enumerate(twin.mice.items()):
                inputs = (torch.zeros(1, *mouse.image_shape), torch.zeros(1, 3), torch.zeros(1, 2))
                image, behavior, pupil_center = twin.stem(mouse_id, *inputs)
                index = twin.mouse_index(mouse_id, image)
                with FlopCounterMode(display=False) as core:
                    feature_map = twin.core(image, behavior, index)
                with FlopCounterMode(display=False) as readout:
                    twin.read_out(mouse_id, feature_map, pupil_center)
                if i == 0:
                    costs["core"] = core.get_total_flops() / 1e9
                # The counter does not count the bilinear sample: four multiply-adds per feature.
                sample = 8 * mouse.n_neurons * twin.core.output_shape[0]
                costs[f"readout {mouse_id}"] = (readout.get_total_flops() + sample) / 1e9
        return costs
    finally:
        for attention in attentions:
            attention.kernel = "fused"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="+", type=Path, help="checkpoints or runs")


def run(args: argparse.Namespace) -> int:
    for path in member_checkpoints(args.checkpoint):
        print(f"{path}\n{describe(load_checkpoint(path))}")
    return 0
