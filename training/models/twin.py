"""The twin of some mice: standardise -> crop -> core -> readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import CCTConfig, CNNConfig, ModelConfig, ViTConfig
from training.data.layout import behavior_text
from training.data.mouse import Mouse
from training.errors import ConfigError
from training.models.cnn import CNNCore
from training.models.cropper import Cropper, Standardizer
from training.models.modules_by_mouse import ModulesByMouse
from training.models.readout import GaussianReadout
from training.models.shifter import Shifter
from training.models.vit import CCTCore, ViTCore

__all__ = ["Twin", "core_inputs", "response_from"]


def response_from(pre_activation: Tensor) -> Tensor:
    """ELU + 1 of the pre-activation: a standardised response, which is not negative."""
    return F.elu(pre_activation) + 1


def core_inputs(
    config: ModelConfig,
    standardizer: Standardizer,
    cropper: Cropper,
    mouse_id: str,
    image: Tensor,
    behavior: Tensor,
    pupil_center: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw inputs -> the core's image (B, C', h, w), the B-MLP's input (B, J), standardised pupil centre (B, 2)."""
    image, behavior, pupil_center = standardizer(image, behavior, pupil_center)
    image = cropper(image, behavior, pupil_center, mouse_id)
    if config.b_mlp.inputs == "behavior_and_pupil_center":
        behavior = torch.cat([behavior, pupil_center], dim=1)
    return image, behavior, pupil_center


class Twin(nn.Module):
    """One member: a core that all mice share, and the parts of each mouse.

    Inputs are in the recording's own units: image (B, C, H, W), behavior (B, K), pupil_center (B, 2).
    """

    READOUT_SHIFTER_HIDDEN = 5

    def __init__(self, config: ModelConfig, mice: Sequence[Mouse]) -> None:
        super().__init__()
        if not mice:
            raise ConfigError("a twin needs at least one mouse", got="none")
        self.config = config
        self.core_is_frozen = False
        self.mice = {mouse.mouse_id: mouse for mouse in mice}
        self.mouse_indices = {mouse_id: i for i, mouse_id in enumerate(self.mice)}
        self._check_mice()
        self.standardizers = ModulesByMouse({mouse.mouse_id: Standardizer(mouse) for mouse in mice})
        self.cropper = Cropper(config=config, mice=list(mice))
        self.core = _build_core(config, self.cropper.output_shape, n_behavior=self.n_core_behavior, n_mice=len(mice))
        self.shifters: ModulesByMouse | None = None
        if config.shifter:
            self.shifters = ModulesByMouse(
                {mouse_id: Shifter(n_inputs=2, hidden=self.READOUT_SHIFTER_HIDDEN) for mouse_id in self.mice}
            )
        self.readouts = ModulesByMouse(
            {
                mouse.mouse_id: GaussianReadout(
                    config=config.readout, mouse=mouse, n_features=self.core.output_shape[0]
                )
                for mouse in mice
            }
        )

    @property
    def n_behavior(self) -> int:
        """K, the number of behaviour channels, which all mice share."""
        return next(iter(self.mice.values())).n_behavior

    @property
    def n_core_behavior(self) -> int:
        """J, the number of inputs of the B-MLP."""
        return self.n_behavior + (2 if self.config.b_mlp.inputs == "behavior_and_pupil_center" else 0)

    def _check_mice(self) -> None:
        if len({mouse.behavior_channels for mouse in self.mice.values()}) > 1:
            raise ConfigError(
                "the mice of one twin must share their behaviour channels, in the same order",
                got="; ".join(f"{m.mouse_id}: {behavior_text(m.behavior_channels)}" for m in self.mice.values()),
                hint="Train them separately, or write the columns that they share as recordings of their own.",
            )
        uses = self.config.uses()
        for mouse in self.mice.values():
            for name in ("behavior", "pupil_center"):
                if name in uses and not mouse.standardized_inputs and getattr(mouse, name) is None:
                    raise ConfigError(
                        f"mouse {mouse.mouse_id!r} has no {name}, which this model uses (behavior "
                        f"'{self.config.behavior}', shifter {self.config.shifter}, cropper.shifter "
                        f"'{self.config.cropper.shifter}')",
                        hint="Leave out the mouse, or set behavior and cropper.shifter to 'none' and shifter to false.",
                    )

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """Standardised responses (B, N)."""
        return response_from(self.pre_activation(mouse_id, image, behavior, pupil_center))

    def pre_activation(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """Pre-activations (B, N), which ensembles average."""
        image, behavior, pupil_center = self.stem(mouse_id, image, behavior, pupil_center)
        feature_map = self.core(image, behavior, self.mouse_index(mouse_id, image))
        return self.read_out(mouse_id, feature_map, pupil_center)

    def stem(
        self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Raw inputs -> the core's image (B, C', h, w), the B-MLP's input (B, J), standardised pupil centre (B, 2)."""
        standardizer = self.standardizer(mouse_id)
        return core_inputs(self.config, standardizer, self.cropper, mouse_id, image, behavior, pupil_center)

    def read_out(self, mouse_id: str, feature_map: Tensor, pupil_center: Tensor) -> Tensor:
        """Feature map (B, D, h, w) and standardised pupil centre (B, 2) -> pre-activation (B, N)."""
        shifter = self.shifter(mouse_id)
        return self.readout(mouse_id).forward(feature_map, None if shifter is None else shifter(pupil_center))

    def standardizer(self, mouse_id: str) -> Standardizer:
        standardizer = self.standardizers[mouse_id]
        assert isinstance(standardizer, Standardizer)
        return standardizer

    def readout(self, mouse_id: str) -> GaussianReadout:
        readout = self.readouts[mouse_id]
        assert isinstance(readout, GaussianReadout)
        return readout

    def shifter(self, mouse_id: str) -> Shifter | None:
        """The shifter of the readout positions, if the twin has one."""
        if self.shifters is None:
            return None
        shifter = self.shifters[mouse_id]
        assert isinstance(shifter, Shifter)
        return shifter

    def stop_shifts(self, mouse_id: str) -> None:
        """Sets a mouse's shifts of crop and readout positions to zero, for all of its gazes."""
        for shifters in (self.shifters, self.cropper.shifters):
            if shifters is not None:
                shifter = shifters[mouse_id]
                assert isinstance(shifter, Shifter)
                shifter.stop()

    def mouse_index(self, mouse_id: str, image: Tensor) -> Tensor:
        """(B,) int64, the index of the mouse, for B-MLPs per mouse."""
        return torch.full((image.shape[0],), self.mouse_indices[mouse_id], dtype=torch.int64, device=image.device)

    def attention_rollout(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """Attention rollout of the core's cls token, (B, h, w) in [0, 1].

        Raises:
            ConfigError: the core is not a ViT.
        """
        if not isinstance(self.core, ViTCore):
            raise ConfigError(
                "attention rollout needs a core with a cls token", got=self.config.core.kind, expected="vit"
            )
        image, behavior, pupil_center = self.stem(mouse_id, image, behavior, pupil_center)
        return self.core.attention_rollout(image, behavior, self.mouse_index(mouse_id, image))

    def regularizer(self, mouse_id: str) -> Tensor:
        """The L1 terms of the loss for one mouse's batch: its readout's and, if the core is trained, the core's."""
        readout = self.readout(mouse_id).regularizer()
        trained = any(parameter.requires_grad for parameter in self.core.parameters())
        return self.core.regularizer() + readout if trained else readout

    def own_core_parameters(self) -> list[str]:
        """Names of the core's parameters that belong to single mice: those of B-MLPs per mouse."""
        if self.config.behavior != "b_mlp" or self.config.b_mlp.mice == "shared":
            return []
        return [name for name, _ in self.core.named_parameters() if ".behavior_mlps." in f".{name}"]

    def freeze_core(self) -> None:
        """Excludes the core from training: no gradient, no L1, and evaluation mode (no dropout).

        B-MLPs per mouse are still trained.
        """
        self.core_is_frozen = True
        own = self.own_core_parameters()
        for name, parameter in self.core.named_parameters():
            parameter.requires_grad_(name in own)
        self.train(self.training)

    def train(self, mode: bool = True) -> Twin:
        super().train(mode)
        if self.core_is_frozen:
            self.core.eval()  # so batch norm keeps its statistics, too
        return self


def _build_core(
    config: ModelConfig, image_shape: tuple[int, int, int], *, n_behavior: int, n_mice: int
) -> ViTCore | CCTCore | CNNCore:
    core = config.core
    if isinstance(core, CNNConfig):
        return CNNCore(config=core, image_shape=image_shape)
    b_mlp = config.b_mlp if config.behavior == "b_mlp" else None
    if isinstance(core, ViTConfig):
        return ViTCore(config=core, image_shape=image_shape, b_mlp=b_mlp, n_behavior=n_behavior, n_mice=n_mice)
    assert isinstance(core, CCTConfig)
    return CCTCore(config=core, image_shape=image_shape, b_mlp=b_mlp, n_behavior=n_behavior, n_mice=n_mice)
