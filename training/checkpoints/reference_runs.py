"""Runs of the V1T reference code: their `args.yaml` as a configuration, and their weights under this project's names.

An unknown option or key is an error that names it. Only this file knows the meaning of the integers of `args.yaml`.
"""

from __future__ import annotations

import math
import re
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import ModelConfig, parse_config
from training.data.layout import MOUSE_IDS, paper_mouse_id
from training.errors import CheckpointError, ConfigError
from training.file_kinds import HEAD, kind_of
from training.models.modules_by_mouse import module_name
from training.safe_yaml import MAX_BYTES, load_yaml

__all__ = ["ReferenceRun", "is_derived", "read_reference_run", "rename_reference_keys"]

# The reference code numbers the mice of Dataset S (S0, S1, A to E), and names those of Dataset F by their data key.
_SENSORIUM_DATA_KEYS = {str(i): data_key for i, data_key in enumerate(list(MOUSE_IDS)[:7])}


MAX_PIXELS = 10**8


class ReferenceRun:
    """The model of an `args.yaml`.

    Attributes:
        config: its configuration.
        mice: the reference code's name of each mouse -> (mouse_id, data_key or None, n_neurons).
        image_shape: (C, H, W) of the recording's images.
    """

    def __init__(self, args: dict[str, Any], name: str) -> None:
        self._args = args
        self._name = name
        self.image_shape = self._image_shape()
        self.mice = self._mice()
        self.config = self._config()

    def _get(self, key: str, default: Any = None) -> Any:
        if key in self._args:
            return self._args[key]
        if default is None:
            hint = "Is this the args.yaml of a V1T run?"
            if {"ensemble_mode", "saved_models"} & set(self._args):
                hint = "It is an ensemble's: import the runs of its members, and give them together to export."
            raise CheckpointError(f"{self._name}: option {key} is missing", hint=hint)
        return default

    def _choice(self, key: str, words: dict[Any, Any], default: Any = None) -> Any:
        value = self._get(key, default)
        if isinstance(value, list | dict | set) or value not in words:
            raise CheckpointError(
                f"{self._name}: invalid option {key}", got=reprlib.repr(value), expected=sorted(words)
            )
        return words[value]

    def _flag(self, key: str) -> bool:
        return bool(self._choice(key, {True: True, False: False}, default=False))

    def _image_shape(self) -> tuple[int, int, int]:
        shape = self._get("input_shape")
        if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
            raise CheckpointError(
                f"{self._name}: invalid option input_shape", got=reprlib.repr(shape), expected="[C, H, W]"
            )
        if math.prod(shape) > MAX_PIXELS:
            raise CheckpointError(
                f"{self._name}: input_shape is too large", got=shape, expected=f"{MAX_PIXELS:,} pixels"
            )
        return shape[0], shape[1], shape[2]

    def _mice(self) -> dict[str, tuple[str, str | None, int]]:
        shapes = self._get("output_shapes")
        if not isinstance(shapes, dict) or not shapes:
            raise CheckpointError(f"{self._name}: invalid option output_shapes", got=reprlib.repr(shapes))
        mice = {}
        for key, shape in shapes.items():
            n_neurons = shape[0] if isinstance(shape, list) and len(shape) == 1 else shape
            if type(n_neurons) is not int or n_neurons < 1:
                raise CheckpointError(f"{self._name}: invalid output_shapes of mouse {key}", got=reprlib.repr(shape))
            name = str(key)
            data_key = _SENSORIUM_DATA_KEYS.get(name)
            if found := re.fullmatch(r"(?:static)?(\d+-\d+-\d+)(?:-.*)?", name):
                data_key = found.group(1)
            mice[name] = (paper_mouse_id(data_key) if data_key else name, data_key, n_neurons)
        return mice

    def _config(self) -> ModelConfig:
        kind = self._choice("core", {"vit": "vit", "cct": "cct", "stacked2d": "cnn"})
        self._choice("readout", {"gaussian2d": "gaussian"}, default="gaussian2d")
        behavior_mode = self._choice("behavior_mode", {n: n for n in range(5)})
        shift_mode = self._choice("shift_mode", {n: n for n in range(5)})
        dataset = str(self._args.get("ds_name") or Path(str(self._args.get("dataset", "sensorium"))).name)
        resize = self._choice("resize_image", {1: True, 0: False}, default=1)
        build = {"vit": self._vit, "cct": self._cct, "cnn": self._cnn}
        content: dict[str, Any] = {
            "core": build[kind](),
            "behavior": ("none", "channels", "b_mlp", "b_mlp", "b_mlp")[behavior_mode],
            "cropper": {
                "crop": self._get("center_crop", 1.0),
                "shifter": ("none", "pupil_center", "none", "pupil_center", "behavior_and_pupil_center")[shift_mode],
                "size": (36, 64) if resize and dataset != "franke2022" else None,
                "grayscale": self._flag("gray_scale"),
            },
            "shifter": shift_mode in (2, 3, 4),
            "readout": {
                "position": "free" if self._flag("disable_grid_predictor") else "network",
                "coordinates": self._choice("grid_predictor_dim", {2: "xy", 3: "xyz"}, default=2),
                "bias": self._choice("bias_mode", {0: "zero", 1: "mean", 2: "mean_over_std"}, default=0),
                "l1": self._get("readout_reg_scale", 0.0076),
            },
        }
        if behavior_mode >= 2:
            content["b_mlp"] = {
                "inputs": "behavior" if behavior_mode == 2 else "behavior_and_pupil_center",
                "mice": "per_mouse" if behavior_mode == 4 else "shared",
            }
        try:
            return parse_config(content)
        except ConfigError as error:
            raise CheckpointError(
                f"{self._name}: no model can be built from its options: {error.message}",
                got=error.got,
                expected=error.expected,
            ) from error

    def _transformer(self) -> dict[str, Any]:
        return {
            "patch_size": self._get("patch_size"),
            "patch_stride": self._get("patch_stride", 1),
            "n_blocks": self._get("num_blocks"),
            "n_heads": self._get("num_heads"),
            "dim": self._get("emb_dim"),
            "mlp_dim": self._get("mlp_dim"),
            "patch_dropout": self._get("p_dropout", 0.0),
            "block_dropout": self._get("t_dropout", 0.0),
            "stochastic_depth": self._get("drop_path", 0.0),
            "l1": self._get("core_reg_scale", 0.0),
            "token_grid": "nearest_square",
        }

    def _vit(self) -> dict[str, Any]:
        tokenizers = {0: "sliding_window", 1: "convolution", 2: "shifted_patches", 3: "normalized_patches"}
        return {
            "kind": "vit",
            "tokenizer": self._choice("patch_mode", tokenizers, default=0),
            "attention": "locality" if self._flag("use_lsa") else "softmax",
            "bias": not self._flag("disable_bias"),
            **self._transformer(),
        }

    def _cct(self) -> dict[str, Any]:
        position = self._choice("pos_emb", {"sine": "sine", "learn": "learned", "none": "none"}, default="sine")
        return {"kind": "cct", "position": position, **self._transformer()}

    def _cnn(self) -> dict[str, Any]:
        return {
            "kind": "ln" if self._flag("linear") else "cnn",
            "n_layers": self._get("num_layers", 4),
            "dropout": self._get("dropout", 0.0),
            "laplace": self._get("core_reg_input", 6.3831),
        }


def read_reference_run(path: Path) -> ReferenceRun:
    """Reads the `args.yaml` of a run.

    Raises:
        CheckpointError: the file or one of its options is invalid; the message names it.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    kind = kind_of(content[:HEAD])
    if kind is not None and kind.name != "a JSON document":  # which is YAML, too
        raise CheckpointError(f"{path} is {kind.name}", expected="the options of a V1T run", hint=kind.hint)
    try:
        args = load_yaml(content.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    if not isinstance(args, dict):
        raise CheckpointError(f"{path} has no options", got=type(args).__name__, expected="a mapping")
    return ReferenceRun(args, str(path))


# Buffers that follow from the configuration.
_DERIVED = re.compile(
    r"""image_cropper\.grid | image_cropper\.image_shifter\.[^.]+\.(max_shift|reg_scale) | core\.reg_scale
      | core\.gamma_(input|hidden) | core\._input_weights_regularizer\..* | .*\.num_batches_tracked
      | .*\.drop_path\.keep_prop | .*\.mha\.(mask|max_value) | core_shifter\.[^.]+\.reg_scale
      | readouts\.[^.]+\.reg_scale | elu1\.one""",
    re.VERBOSE,
)


def is_derived(key: str) -> bool:
    """Whether a key of the reference code is of a buffer that is computed from the options, and not imported."""
    return _DERIVED.fullmatch(key) is not None


# Key of the reference code -> our key. {i}: block or layer; {m}: the reference code's name of a mouse.
_BLOCK = r"core\.transformer\.blocks\.(?P<i>\d+)\."
_RENAMES: list[tuple[str, str]] = [
    (r"core\.patch_embedding\.cls_token", "core.tokenizer.cls_token"),
    (r"core\.patch_embedding\.pos_embedding", "core.tokenizer.position"),
    (r"core\.tokenizer\.pos_embedding", "core.tokenizer.position"),
    (r"core\.tokenizer\.conv2d\.weight", "core.tokenizer.projection.weight"),
    (_BLOCK + r"mha\.layer_norm\.(?P<p>\w+)", "core.transformer.blocks.{i}.attention.norm.{p}"),
    (_BLOCK + r"mha\.(to_)?qkv\.weight", "core.transformer.blocks.{i}.attention.qkv.weight"),
    (_BLOCK + r"mha\.projection\.0\.(?P<p>\w+)", "core.transformer.blocks.{i}.attention.output.{p}"),
    (_BLOCK + r"mha\.scale", "core.transformer.blocks.{i}.attention.scale"),
    (_BLOCK + r"mlp\.(model\.)?0\.(?P<p>\w+)", "core.transformer.blocks.{i}.mlp.norm.{p}"),
    (_BLOCK + r"mlp\.(model\.)?1\.(?P<p>\w+)", "core.transformer.blocks.{i}.mlp.up.{p}"),
    (_BLOCK + r"mlp\.(model\.)?4\.(?P<p>\w+)", "core.transformer.blocks.{i}.mlp.down.{p}"),
    (r"core\.features\.layer(?P<i>\d+)\.conv\.weight", "core.convolutions.{i}.weight"),
    (r"core\.features\.layer(?P<i>\d+)\.ds_conv\.in_depth_conv\.(?P<p>\w+)", "core.convolutions.{i}.mix_in.{p}"),
    (r"core\.features\.layer(?P<i>\d+)\.ds_conv\.spatial_conv\.(?P<p>\w+)", "core.convolutions.{i}.spatial.{p}"),
    (r"core\.features\.layer(?P<i>\d+)\.ds_conv\.out_depth_conv\.(?P<p>\w+)", "core.convolutions.{i}.mix_out.{p}"),
    (r"core\.features\.layer(?P<i>\d+)\.norm\.(?P<p>\w+)", "core.norms.{i}.{p}"),
    (
        r"image_cropper\.image_shifter\.(?P<m>[^.]+)\.mlp\.(?P<l>[024])\.(?P<p>\w+)",
        "cropper.shifters.{m}.layers.{l}.{p}",
    ),
    (r"(core_)?shifter\.(?P<m>[^.]+)\.mlp\.(?P<l>[024])\.(?P<p>\w+)", "shifters.{m}.layers.{l}.{p}"),
    (r"readouts?\.(?P<m>[^.]+)\.bias", "readouts.{m}.bias"),
    (r"readouts?\.(?P<m>[^.]+)\.sigma", "readouts.{m}.sigma"),
    (r"readouts?\.(?P<m>[^.]+)\._?features", "readouts.{m}.features"),
    (r"readouts?\.(?P<m>[^.]+)\._mu", "readouts.{m}.free_mu"),
    (r"readouts?\.(?P<m>[^.]+)\.source_grid", "readouts.{m}.source_grid"),
    (r"readouts?\.(?P<m>[^.]+)\.mu_transform\.(?P<n>[02])\.(?P<p>\w+)", "readouts.{m}.position_network.{n}.{p}"),
]
_PATTERNS = [(re.compile(pattern), ours) for pattern, ours in _RENAMES]
_B_MLP = re.compile(_BLOCK + r"b[-_]mlp\.models?\.((?P<m>[^.]+)\.)?(?P<n>[03])\.(?P<p>weight|bias)")
_PROJECTION = re.compile(r"core\.patch_embedding\.projection\.(?P<n>\d+)\.(?P<p>weight|bias)")
_B_MLP_NAMES = {"0weight": "hidden_weight", "0bias": "hidden_bias", "3weight": "output_weight", "3bias": "output_bias"}
# Index of the tokenizer's layers in the reference code's nn.Sequential.
_PROJECTION_NAMES = {
    "sliding_window": {"2": "projection"},
    "convolution": {"0": "projection"},
    "shifted_patches": {"3": "norm_in", "4": "projection"},
    "normalized_patches": {"2": "norm_in", "3": "projection", "4": "norm_out"},
}


def rename_reference_keys(
    state: dict[str, Tensor], *, config: ModelConfig, mouse_ids: dict[str, str], name: str
) -> dict[str, Tensor]:
    """A state dict of the reference code with our names and shapes.

    Args:
        mouse_ids: the reference code's name of each mouse -> ours, in the order of the twin's mice.

    Raises:
        CheckpointError: a key is unknown; the message names it.
    """
    ours: dict[str, Tensor] = {}
    per_mouse: dict[str, dict[str, Tensor]] = {}
    locality = getattr(config.core, "attention", "softmax") == "locality"
    tokenizer = _PROJECTION_NAMES.get(getattr(config.core, "tokenizer", ""), {})
    for key, tensor in state.items():
        if is_derived(key) or (key.endswith(".mha.scale") and not locality):
            continue
        if (found := _B_MLP.fullmatch(key)) is not None:
            target = f"core.transformer.behavior_mlps.{found['i']}.{_B_MLP_NAMES[found['n'] + found['p']]}"
            group, target = per_mouse.setdefault(target, {}), found["m"] or "share"
        elif (found := _PROJECTION.fullmatch(key)) is not None and found["n"] in tokenizer:
            group, target = ours, f"core.tokenizer.{tokenizer[found['n']]}.{found['p']}"
        else:
            group, target = ours, _rename(key, mouse_ids, name)
        if target in group:
            raise CheckpointError(f"{name}: key {key} duplicates another key", got=target)
        group[target] = tensor
    for target, tensors in per_mouse.items():
        order = ["share"] if "share" in tensors else list(mouse_ids)
        if set(order) != set(tensors):
            raise CheckpointError(f"{name}: B-MLPs of other mice", got=sorted(tensors), expected=sorted(order))
        if len({tensor.shape for tensor in tensors.values()}) > 1:
            raise CheckpointError(
                f"{name}: the mice's B-MLPs have different shapes of {target}",
                got={mouse: tuple(tensor.shape) for mouse, tensor in tensors.items()},
            )
        ours[target] = torch.stack([tensors[mouse] for mouse in order])
    return {key: _reshape(key, tensor) for key, tensor in ours.items()}


def _rename(key: str, mouse_ids: dict[str, str], name: str) -> str:
    for pattern, ours in _PATTERNS:
        if (found := pattern.fullmatch(key)) is None:
            continue
        parts = found.groupdict()
        if "m" in parts:
            if parts["m"] not in mouse_ids:
                raise CheckpointError(f"{name}: key {key} belongs to an unknown mouse", expected=sorted(mouse_ids))
            parts["m"] = module_name(mouse_ids[parts["m"]])
        if "l" in parts:
            parts["l"] = str(int(parts["l"]) // 2)  # the reference counts the tanh in between
        return ours.format(**parts)
    raise CheckpointError(f"{name}: unknown key {key}", hint="Its model has a part that this project does not have.")


def _reshape(key: str, tensor: Tensor) -> Tensor:
    """A tensor in our shape. Shapes that the reference code does not have are left for the importer to refuse."""
    if not key.startswith("readouts.") or tensor.ndim != 4 or tensor.shape[0] != 1:
        return tensor
    if key.endswith(".features") and tensor.shape[2] == 1:
        return tensor[0, :, 0].T  # (1, D, 1, N) -> (N, D)
    if key.endswith(".sigma"):
        return tensor[0]  # (1, N, 2, 2) -> (N, 2, 2)
    if key.endswith(".free_mu") and tensor.shape[2] == 1:
        return tensor[0, :, 0]  # (1, N, 1, 2) -> (N, 2)
    return tensor
