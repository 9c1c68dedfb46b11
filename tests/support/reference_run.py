"""Writes a twin like the reference code's trainer: `args.yaml` and `ckpt/model_state.pt`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from training.models import Twin

__all__ = ["reference_args", "reference_state", "write_reference_run"]

# Our key -> the reference code's; mice keep their names.
_NAMES = [
    (r"core\.tokenizer\.cls_token", "core.patch_embedding.cls_token"),
    (r"core\.tokenizer\.position", "core.patch_embedding.pos_embedding"),
    (r"core\.tokenizer\.projection\.(\w+)", r"core.patch_embedding.projection.2.\1"),
    (r"core\.transformer\.blocks\.(\d)\.attention\.norm\.(\w+)", r"core.transformer.blocks.\1.mha.layer_norm.\2"),
    (r"core\.transformer\.blocks\.(\d)\.attention\.qkv\.weight", r"core.transformer.blocks.\1.mha.to_qkv.weight"),
    (r"core\.transformer\.blocks\.(\d)\.attention\.output\.(\w+)", r"core.transformer.blocks.\1.mha.projection.0.\2"),
    (r"core\.transformer\.blocks\.(\d)\.mlp\.norm\.(\w+)", r"core.transformer.blocks.\1.mlp.model.0.\2"),
    (r"core\.transformer\.blocks\.(\d)\.mlp\.up\.(\w+)", r"core.transformer.blocks.\1.mlp.model.1.\2"),
    (r"core\.transformer\.blocks\.(\d)\.mlp\.down\.(\w+)", r"core.transformer.blocks.\1.mlp.model.4.\2"),
    (r"core\.transformer\.behavior_mlps\.(\d)\.hidden_(\w+)", r"core.transformer.blocks.\1.b-mlp.models.share.0.\2"),
    (r"core\.transformer\.behavior_mlps\.(\d)\.output_(\w+)", r"core.transformer.blocks.\1.b-mlp.models.share.3.\2"),
    (r"readouts\.([\w-]+)\.position_network\.(\d\.\w+)", r"readouts.\1.mu_transform.\2"),
    (r"readouts\.(.+)", r"readouts.\1"),
]


def reference_args(twin: Twin) -> dict[str, Any]:
    """`args.yaml` of a sliding-window V1T with a shared B-MLP."""
    core = twin.config.core
    mouse = next(iter(twin.mice.values()))
    return {
        "dataset": "data/sensorium",
        "ds_name": "sensorium",
        "input_shape": list(mouse.image_shape),
        "output_shapes": {mouse_id: [mouse.n_neurons] for mouse_id, mouse in twin.mice.items()},
        "core": "vit",
        "readout": "gaussian2d",
        "behavior_mode": 3,
        "shift_mode": 2,
        "center_crop": 1.0,
        "resize_image": 1,
        "patch_mode": 0,
        "patch_size": core.patch_size,
        "patch_stride": core.patch_stride,
        "num_blocks": core.n_blocks,
        "num_heads": core.n_heads,
        "emb_dim": core.dim,
        "mlp_dim": core.mlp_dim,
        "lr": 0.0016,
    }


def reference_state(twin: Twin) -> dict[str, Tensor]:
    """The weights with the reference code's names, shapes and additional buffers."""
    state: dict[str, Tensor] = {"elu1.one": torch.tensor(1.0), "core.reg_scale": torch.tensor(0.5)}
    for ours, tensor in twin.state_dict().items():
        if found := re.fullmatch(r"shifters\.(.+)\.layers\.(\d)\.(\w+)", ours):
            mouse_id, layer, part = found.groups()
            state[f"core_shifter.{mouse_id}.mlp.{2 * int(layer)}.{part}"] = tensor
            continue
        theirs = next(re.sub(pattern, name, ours) for pattern, name in _NAMES if re.fullmatch(pattern, ours))
        if "b-mlp" in theirs:
            tensor = tensor[0]
        elif theirs.endswith(".features"):
            tensor = tensor.T[None, :, None]  # (N, D) -> (1, D, 1, N)
        elif theirs.endswith(".sigma"):
            tensor = tensor[None]
        state[theirs] = tensor.clone()
    return state


def write_reference_run(
    folder: Path, twin: Twin, *, args: dict[str, Any] | None = None, state: dict[str, Any] | None = None, **more: Any
) -> Path:
    """A run folder; `args` and `state` override those of the twin (None removes), `more` is saved beside the model."""
    merged = {**reference_args(twin), **(args or {})}
    weights = {**reference_state(twin), **(state or {})}
    (folder / "ckpt").mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in merged.items() if value is not None}
    (folder / "args.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    model = {key: tensor for key, tensor in weights.items() if tensor is not None}
    torch.save({"epoch": 3, "value": 0.4, "model": model, **more}, folder / "ckpt" / "model_state.pt")
    return folder
