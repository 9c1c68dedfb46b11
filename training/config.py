"""Configuration of models and of training: frozen and validated. The defaults are the paper's (Table A.2).

Choices are words. Options that contradict each other are refused here, before any work, with an error that names both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from training.errors import ConfigError
from training.safe_yaml import load_yaml

__all__ = [
    "PRESETS",
    "BehaviorMLPConfig",
    "CCTConfig",
    "CNNConfig",
    "CoreConfig",
    "CropperConfig",
    "LNConfig",
    "ModelConfig",
    "ReadoutConfig",
    "TokenGrid",
    "TrainingConfig",
    "ViTConfig",
    "parse_config",
    "parse_options",
    "parse_training",
    "with_options",
]

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0)]

# How tokens become a map. "patches": the true grid of patches. "nearest_square": the pair of divisors of the number of
# tokens nearest its square root, as in the reference code. They agree for 36x64 with patch 8 and stride 1 (29x57).
TokenGrid = Literal["patches", "nearest_square"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ViTConfig(_Frozen):
    """Vision transformer core; with `behavior="b_mlp"` it is V1T (paper, section 4.1)."""

    kind: Literal["vit"] = "vit"
    tokenizer: Literal["sliding_window", "convolution", "shifted_patches", "normalized_patches"] = "sliding_window"
    patch_size: Positive = 8
    patch_stride: Positive = 1
    n_blocks: Positive = 4
    n_heads: Positive = 4
    dim: Positive = 155
    mlp_dim: Positive = 488
    attention: Literal["softmax", "locality"] = "softmax"
    bias: bool = Field(default=True, description="of the blocks' linear layers; queries, keys and values have none")
    patch_dropout: Probability = 0.0229
    block_dropout: Probability = Field(default=0.2544, description="of attention weights, projections and MLPs")
    stochastic_depth: Probability = 0.0
    l1: Scale = 0.5379
    token_grid: TokenGrid = "patches"


class CCTConfig(_Frozen):
    """Compact convolutional transformer core (Hassani et al. 2021), as in the reference code."""

    kind: Literal["cct"] = "cct"
    patch_size: Positive = 8
    patch_stride: Positive = 1
    n_blocks: Positive = 4
    n_heads: Positive = 4
    dim: Positive = 160
    mlp_dim: Positive = 488
    position: Literal["sine", "learned", "none"] = "sine"
    patch_dropout: Probability = 0.0229
    block_dropout: Probability = 0.2544
    stochastic_depth: Probability = Field(default=0.0, description="of the last block; it increases linearly from 0")
    l1: Scale = 0.5379
    token_grid: TokenGrid = "patches"

    @model_validator(mode="after")
    def _heads_split_the_inner_width(self) -> CCTConfig:
        # In the reference code the inner width is dim // heads, split over the heads once more.
        inner = self.dim // self.n_heads
        if inner == 0 or inner % self.n_heads:
            raise ValueError(
                f"dim {self.dim} // n_heads {self.n_heads} = {inner} does not split into {self.n_heads} heads"
            )
        return self


class CNNConfig(_Frozen):
    """Stacked, depth-separable convolutions (Lurz et al. 2021): the Sensorium CNN baseline."""

    kind: Literal["cnn"] = "cnn"
    n_layers: Positive = 4
    channels: Positive = 64
    input_kernel: Positive = 9
    hidden_kernel: Positive = 7
    convolution_bias: bool = Field(
        default=True, description="of the depth-separable layers; the Sensorium weights have none"
    )
    dropout: Probability = 0.0
    norm_momentum: float = Field(
        default=0.9, gt=0, le=1, description="of batch norm; the reference code's is nearly the last batch's statistics"
    )
    laplace: Scale = Field(default=6.3831, description="smoothness of the first layer's filters")


class LNConfig(CNNConfig):
    """Linear-nonlinear model: the CNN without its nonlinearities."""

    kind: Literal["ln"] = "ln"  # type: ignore[assignment]


_CORES: dict[str, type[BaseModel]] = {"vit": ViTConfig, "cct": CCTConfig, "cnn": CNNConfig, "ln": LNConfig}
CoreConfig = Annotated[ViTConfig | CCTConfig | CNNConfig | LNConfig, Field(discriminator="kind")]


class BehaviorMLPConfig(_Frozen):
    """The B-MLP, which adds behaviour to every token before a block (paper, section 4.1.1; ablations in A.2)."""

    inputs: Literal["behavior", "behavior_and_pupil_center"] = "behavior_and_pupil_center"
    mice: Literal["shared", "per_mouse"] = "shared"
    blocks: Literal["each", "tied", "first"] = Field(
        default="each", description="one MLP per block, one MLP for all blocks, or one for the first block only"
    )
    hidden: Literal["half", "full"] = Field(
        default="half", description="dim // 2 hidden units (published weights) or dim (the paper's text)"
    )


class CropperConfig(_Frozen):
    """How the recording's image becomes the core's (paper, section 5 and Table A.5)."""

    crop: float = Field(default=1.0, gt=0, le=1, description="alpha: the share of height and width that is kept")
    shifter: Literal["none", "pupil_center", "behavior_and_pupil_center"] = Field(
        default="none", description="shifts the crop with the gaze, per mouse, by at most 1 - crop"
    )
    size: tuple[Positive, Positive] | None = Field(
        default=(36, 64), description="size after resizing; null keeps the resolution"
    )
    grayscale: bool = Field(default=False, description="average the two channels of Dataset F")


class ReadoutConfig(_Frozen):
    """Gaussian readout (Lurz et al. 2021): a learned position and feature vector per neuron."""

    position: Literal["network", "free"] = "network"
    coordinates: Literal["xy", "xyz"] = Field(default="xy", description="cortical coordinates that the network gets")
    hidden: Positive = 30
    hidden_layers: Positive = Field(default=1, description="of the position network, each of `hidden` units")
    bias: Literal["zero", "mean", "mean_over_std"] = "zero"
    l1: Scale = 0.0076

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A run of the code without this option has no entry for it, and is resumed by an equal configuration.
        content: dict[str, Any] = dump(self)
        if content.get("hidden_layers") == 1:
            del content["hidden_layers"]
        return content


class ModelConfig(_Frozen):
    """A whole twin, except for its mice."""

    core: CoreConfig = ViTConfig()
    behavior: Literal["none", "channels", "b_mlp"] = "b_mlp"
    b_mlp: BehaviorMLPConfig = BehaviorMLPConfig()
    cropper: CropperConfig = CropperConfig()
    shifter: bool = Field(default=True, description="shifts the readout positions with the pupil centre")
    readout: ReadoutConfig = ReadoutConfig()

    @field_validator("core", mode="before")
    @classmethod
    def _default_to_a_vit(cls, core: Any) -> Any:
        return {"kind": "vit", **core} if isinstance(core, dict) else core

    @model_validator(mode="after")
    def _options_fit_together(self) -> ModelConfig:
        core = self.core
        if self.behavior == "b_mlp" and isinstance(core, CNNConfig):
            raise ValueError(
                f"behavior 'b_mlp' needs the tokens of a transformer and does not fit core '{core.kind}': "
                "use behavior 'channels' or 'none'"
            )
        if self.behavior != "b_mlp" and self.b_mlp != BehaviorMLPConfig():
            raise ValueError(f"b_mlp is configured, but behavior is '{self.behavior}': set behavior to 'b_mlp'")
        if self.behavior == "channels" and isinstance(core, CCTConfig):
            raise ValueError("behavior 'channels' does not fit core 'cct': use behavior 'b_mlp' or 'none'")
        if isinstance(core, ViTConfig | CCTConfig) and core.patch_stride > core.patch_size:
            raise ValueError(f"patch_stride {core.patch_stride} is larger than patch_size {core.patch_size}")
        if isinstance(core, ViTConfig) and core.tokenizer == "shifted_patches" and core.patch_size < 2:
            raise ValueError("tokenizer 'shifted_patches' shifts by patch_size // 2 and needs patch_size 2 or more")
        return self

    def uses(self) -> tuple[Literal["image", "behavior", "pupil_center"], ...]:
        """The inputs that this model's responses depend on."""
        behavior = self.behavior != "none" or self.cropper.shifter == "behavior_and_pupil_center"
        pupil = (
            self.shifter
            or self.cropper.shifter != "none"
            or (self.behavior == "b_mlp" and self.b_mlp.inputs == "behavior_and_pupil_center")
        )
        names: list[Literal["image", "behavior", "pupil_center"]] = ["image"]
        if behavior:
            names.append("behavior")
        if pupil:
            names.append("pupil_center")
        return tuple(names)


class TrainingConfig(_Frozen):
    """How a member is trained; the defaults are the paper's (section 4.2 and Table A.2), except `readout_start`."""

    batch_size: int = Field(default=16, ge=1, description="trials of each mouse in one update")
    update_after: Literal["all_mice", "each_mouse"] = Field(
        default="all_mice",
        description="one update with the summed gradients of all mice's batches, or one after each mouse's batch",
    )
    micro_batch: int | None = Field(default=None, ge=1, description="trials in memory at once; the update is the same")
    learning_rate: float = Field(default=0.0016, gt=0)
    warmup: int = Field(
        default=0, ge=0, description="updates over which the learning rate rises from 0; keeps readout positions inside"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.9999, ge=0, lt=1)
    max_epochs: int = Field(default=200, ge=1)
    schedule: Literal["plateau", "cosine"] = Field(
        default="plateau",
        description="of the learning rate: reduced where the validation score stops improving, or along a cosine to 0 "
        "at the last of `max_epochs`",
    )
    monitor: Literal["correlation", "loss"] = Field(
        default="correlation", description="score of the validation trials that early stopping watches"
    )
    patience: int = Field(default=10, ge=0, description="epochs without a better validation score before a reduction")
    factor: float = Field(default=0.3, gt=0, lt=1, description="of the learning rate at a reduction")
    max_reductions: int = Field(default=2, ge=0, description="reductions without a better score before training stops")
    readout_start: Literal["auto", "random", "trials", "regression"] = Field(
        default="auto",
        description="where readouts look before the first update. trials: where the training trials say that neurons "
        "look; regression: on the maps of a frozen core; auto: regression if the core is frozen and its maps fit into "
        "memory, else trials if its map is arranged like the image, else random",
    )
    scale_loss: bool = Field(default=True, description="by sqrt(training trials / batch), per mouse")
    save_minutes: float = Field(default=10, gt=0, description="minutes between saves within an epoch")


# The systems of the paper's Table 1.
PRESETS: dict[str, ModelConfig] = {
    "v1t": ModelConfig(),
    "vit": ModelConfig(behavior="channels"),
    "cct": ModelConfig(core=CCTConfig()),
    "cnn": ModelConfig(core=CNNConfig(), behavior="channels"),
    "ln": ModelConfig(core=LNConfig(), behavior="channels"),
}


def parse_config(content: Any) -> ModelConfig:
    """Validates a configuration from JSON or YAML.

    Raises:
        ConfigError: names the option, its value and what is accepted.
    """
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        raise _config_error(error, content) from error


def _config_error(error: ValidationError, content: Any) -> ConfigError:
    first = error.errors()[0]
    hint = "docs/models.md lists every option."
    core = content.get("core") if isinstance(content, dict) else None
    kind = str(core.get("kind", "vit")) if isinstance(core, dict) else ""
    # pydantic puts the kind of core into the path, but the user wrote only `core.attention`.
    path = [str(part) for part in first["loc"] if part != kind]
    if first["type"] == "extra_forbidden" and path[:1] == ["core"]:
        options = sorted(set(_CORES[kind].model_fields) - {"kind"})
        return ConfigError(f"core '{kind}' has no option '{path[-1]}'", got=first["input"], expected=options, hint=hint)
    if first["type"] == "extra_forbidden":
        return ConfigError("no such option", got=".".join(path), hint=hint)
    got = first["input"] if not isinstance(first["input"], dict | BaseModel) else None
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{'.'.join(path)}: {message}" if path else message, got=got, hint=hint)


def parse_training(options: dict[str, Any]) -> TrainingConfig:
    """Validates training options, such as `{"max_epochs": 20}`.

    Raises:
        ConfigError: names the option and what is wrong with it.
    """
    try:
        return TrainingConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise ConfigError(f"training.{option}: {first['msg']}", got=first["input"]) from error


def parse_options(pairs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model and of training, from the OPTION=VALUE pairs of `--set`; values are YAML.

    Raises:
        ConfigError: a pair cannot be read.
    """
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("an option is given as OPTION=VALUE", got=pair, expected="such as core.patch_stride=4")
        options = training if name.startswith("training.") else model
        if name.removeprefix("training.") in options:
            raise ConfigError(f"option {name} is given twice", got=pair)
        try:
            options[name.removeprefix("training.")] = load_yaml(value)
        except ValueError as error:
            expected = "such as 4 or pupil_center"
            raise ConfigError(f"the value of {name} cannot be read", got=value, expected=expected) from error
    return model, training


def with_options(config: ModelConfig, options: dict[str, Any]) -> ModelConfig:
    """A copy with dotted options replaced, such as `{"core.dim": 64, "behavior": "none"}`.

    Raises:
        ConfigError: an option does not exist or its value is not accepted.
    """
    content = config.model_dump()
    for path, value in options.items():
        *parents, name = path.split(".")
        place: Any = content
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError("no such option", got=path, hint="docs/models.md lists every option.")
        place[name] = value  # validation refuses an option that does not exist
    return parse_config(content)
