"""One update (paper, section 4.2): the gradients of all mice's batches, summed over micro-batches and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingConfig
from training.data.batches import MouseBatch, read_batch
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.models.twin import response_from
from training.trainer.loss import poisson_loss
from training.trainer.transfer import FeatureMaps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Update"]


@dataclass
class Update:
    """Computes the gradients of one update; the training loop then steps the optimiser.

    With several processes, each takes every n-th trial of each mouse's batch, and the gradients are summed. The update
    is the same as with one process, except for the random draws of dropout and readout positions.

    Attributes:
        maps: feature maps of a frozen core; without them the core is run.
        compiled: the compiled core, which is run instead of `twin.core`.
    """

    twin: Twin
    training: TrainingConfig
    recordings: Mapping[str, Recording]
    fabric: Fabric
    maps: FeatureMaps | None = None
    compiled: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        if self.fabric.world_size > 1 and self.twin.config.core.kind in ("cnn", "ln"):
            raise ConfigError(
                f"core '{self.twin.config.core.kind}' has batch norm, which needs whole batches",
                got=f"{self.fabric.world_size} devices",
                expected="1",
            )

    def read(self, trials: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, MouseBatch]]:
        """This process's share of every mouse's batch, on the CPU; in pinned memory if it goes to a GPU."""
        share = slice(self.fabric.global_rank, None, self.fabric.world_size)
        batches = {}
        for mouse_id, indices in trials.items():
            batch = read_batch(self.recordings[mouse_id], indices[share], torch.device("cpu"))
            if self.fabric.device.type == "cuda":
                image, behavior, pupil_center, response = (tensor.pin_memory() for tensor in batch)
                batch = image, behavior, pupil_center, response
            batches[mouse_id] = (indices[share], batch)
        return batches

    def gradients(
        self, trials: Mapping[str, np.ndarray], batches: Mapping[str, tuple[np.ndarray, MouseBatch]] | None = None
    ) -> float:
        """Sets the gradients of the sum of these mice's losses; returns that sum."""
        batches = self.read(trials) if batches is None else batches
        loss = torch.zeros((), device=self.fabric.device)
        for mouse_id, indices in trials.items():
            loss += self.accumulate(mouse_id, *batches[mouse_id], batch_size=len(indices))
        if self.fabric.world_size > 1:
            loss = self._sum_over_processes(loss)
        return float(loss)

    def accumulate(self, mouse_id: str, indices: np.ndarray, batch: MouseBatch, *, batch_size: int) -> Tensor:
        """Adds the gradients of one mouse's batch, or of this process's share of it; returns its loss.

        The L1 terms are added once per mouse and update, as in the reference code: the core's again for every mouse.
        """
        n_trials = len(self.recordings[mouse_id].tier("train")) if self.training.scale_loss else None
        size = self.training.micro_batch or max(1, len(indices))
        loss = torch.zeros((), device=self.fabric.device)
        for start in range(0, len(indices), size):
            part = slice(start, start + size)
            predictions = self.predict(mouse_id, indices[part], *(tensor[part] for tensor in batch[:3]))
            response = batch[3][part].to(self.fabric.device, non_blocking=True)
            poisson = poisson_loss(predictions, response, n_trials=n_trials, batch_size=batch_size)
            self.fabric.backward(poisson)
            loss += poisson.detach()
        if self.fabric.global_rank == 0:
            penalty = self.twin.regularizer(mouse_id)
            self.fabric.backward(penalty)
            loss += penalty.detach()
        return loss

    def predict(
        self, mouse_id: str, indices: np.ndarray, image: Tensor, behavior: Tensor, pupil_center: Tensor
    ) -> Tensor:
        """Standardised responses (B, N). The core runs in the precision of the run, everything else in float32."""
        device, twin = self.fabric.device, self.twin
        if self.maps is not None:
            return self.maps.predict(twin, mouse_id, indices, pupil_center.to(device, non_blocking=True))
        image, behavior, pupil_center = (x.to(device, non_blocking=True) for x in (image, behavior, pupil_center))
        image, behavior, pupil_center = twin.stem(mouse_id, image, behavior, pupil_center)
        core = twin.core if self.compiled is None else self.compiled
        with self.fabric.autocast():
            feature_map = core(image, behavior, twin.mouse_index(mouse_id, image))
        return response_from(twin.read_out(mouse_id, feature_map.to(pupil_center.dtype), pupil_center))

    def _sum_over_processes(self, loss: Tensor) -> Tensor:
        trained = [parameter for parameter in self.twin.parameters() if parameter.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        # How many processes have a gradient: a weight without one, such as another mouse's, must stay without.
        has = loss.new_tensor([parameter.grad is not None for parameter in trained])
        flat = torch.cat([loss.view(1), has, *(grad.flatten() for grad in grads)])
        total = self.fabric.all_reduce(flat, reduce_op="sum")
        assert isinstance(total, Tensor)
        have, summed = total[1 : 1 + len(trained)], total[1 + len(trained) :]
        parts = summed.split([grad.numel() for grad in grads])
        for parameter, part, n in zip(trained, parts, have.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if n else None
        return total[0]
