"""The subject of an experiment: a mouse, the chosen neurons, its screen, and its behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.gradient import Gradient
from v1t_client._answers.mice import MouseDetail, NeuronTable
from v1t_client._answers.notes import Note, merged
from v1t_client._answers.prediction import Model, Prediction
from v1t_client._errors import InvalidArgument, ReplyInvalid
from v1t_client._extras import needed
from v1t_client._predictor import Predictor
from v1t_client._protocol.arguments import channel_arguments
from v1t_client.insilico.stimuli.monitor import Monitor
from v1t_client.insilico.stimuli.pictures import Pictures
from v1t_client.insilico.stimuli.screen import Screen

if TYPE_CHECKING:
    import xarray

__all__ = ["Subject"]

BATCH = 32  # images per request: 5 MB of 144 x 256, and short enough for Ctrl-C to act soon


@dataclass(kw_only=True)
class Subject:
    """Neurons of one mouse whose responses can be predicted, and the assumptions made in doing so.

    Attributes:
        predictor: makes the predictions; only `respond` calls its method `predict`.
        mouse: image size, statistics, bundle.
        neurons: the chosen neurons, in the order of the responses.
        screen: draws stimuli for this mouse.
        state: arguments of `predict`: behaviour by name, and the named state for what is not in it.
        all_neurons: True if `neurons` are all neurons of the mouse, in its order.
        assumed: what the predictor filled in, without repetitions.
        notes: what it said about the inputs, without repetitions.
    """

    predictor: Predictor
    mouse: MouseDetail
    neurons: NeuronTable
    screen: Screen
    state: Mapping[str, Any]
    all_neurons: bool = False
    assumed: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        predictor: Predictor,
        mouse: str,
        *,
        model: str | None = None,
        neuron_ids: Sequence[int] | None = None,
        best: int | None = None,
        monitor: Monitor | None = None,
        luminance: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Subject:
        """Looks up the mouse and its neurons.

        Args:
            neuron_ids: which neurons; all by default.
            best: instead of ids, the number of neurons with the best test scores.
            state: see the attribute; None is left out.

        Raises:
            InvalidArgument: a neuron does not exist, no test scores are known, or the mouse has no such state or
                behaviour channel.
        """
        detail = predictor.mouse(mouse, model=model)
        state = _arguments(state or {}, detail)
        if "state" in state:
            detail.state_values(state["state"])  # refused before any work
        neurons = predictor.neurons(mouse, model=detail.model)
        if neuron_ids is not None and best is not None:
            raise InvalidArgument("neurons are chosen in two ways", got="neuron_ids and best", expected="one of them")
        chosen = neurons
        if neuron_ids is not None:
            chosen = _by_id(neurons, neuron_ids)
        elif best is not None:
            chosen = _best(neurons, best)
        return cls(
            predictor=predictor,
            mouse=detail,
            neurons=chosen,
            screen=Screen.of(detail, monitor=monitor, luminance=luminance),
            state=state,
            all_neurons=np.array_equal(chosen.neuron_ids, neurons.neuron_ids),
        )

    @property
    def model(self) -> Model:
        return self.mouse.bundle

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def held(self) -> dict[str, float]:
        """What each channel of behaviour and gaze is held at, unless an experiment varies it; as far as it is known."""
        values = self.mouse.state_values(self.state.get("state", "median"))
        for name, value in self.state.items():
            if name == "pupil_center":
                values |= {channel.name: float(x) for channel, x in zip(self.mouse.pupil_center, value, strict=True)}
            elif name == "behavior":
                values |= {channel: float(x) for channel, x in value.items()}
            elif name not in ("state", "strict"):
                values[name] = float(value)
        return values

    def only(self, rows: npt.ArrayLike) -> Subject:
        """The same subject with the neurons at these positions; `assumed` and `notes` are shared."""
        rows = np.atleast_1d(np.asarray(rows))
        return replace(self, neurons=self.neurons.rows(rows), all_neurons=False)

    def arguments(self, **state: Any) -> dict[str, Any]:
        """The subject's `state` with other values for what is given, unless that is None."""
        arguments = {**self.state, **{name: value for name, value in state.items() if value is not None}}
        if "behavior" in arguments:
            arguments["behavior"] = {**self.state.get("behavior", {}), **arguments["behavior"]}
        return arguments

    def respond(self, images: npt.NDArray[Any], **state: Any) -> npt.NDArray[np.float32]:
        """(B, n) standardised responses.

        Args:
            images: (B, H, W), the same in all channels, or (B, C, H, W); in the recording's units.
            state: behaviour that overrides the subject's own: arguments of `predict`, one value or one per image.

        Raises:
            ReplyInvalid: the server changed its bundle since the beginning.
        """
        images = np.asarray(images)
        B, C = len(images), self.mouse.image_shape[0]
        if images.ndim == 3:
            images = np.broadcast_to(images[:, None], (B, C, *images.shape[1:]))
        arguments = self.arguments(**state)
        parts = []
        for start in range(0, B, self.batch):
            piece = slice(start, start + self.batch)
            values = {name: _piece(value, piece, B, pair=name == "pupil_center") for name, value in arguments.items()}
            prediction = self.predictor.predict(
                self.mouse.mouse_id,
                images[piece],
                neuron_ids=None if self.all_neurons else self.neurons.neuron_ids,
                model=self.mouse.model,
                **values,
            )
            self.note(prediction)
            parts.append(prediction.responses)
        return np.concatenate(parts)

    @property
    def batch(self) -> int:
        """Images per call of the predictor: enough for each of several servers."""
        return BATCH * int(getattr(self.predictor, "n_replicas", 1))

    def pictures(self, path: Path | str) -> Pictures:
        """A folder or a .npy file of images for this mouse."""
        mouse = self.mouse
        return Pictures.open(Path(path), mouse.image_shape, standardized=mouse.standardized_inputs)

    def note(self, prediction: Prediction | Gradient | Attention) -> None:
        """Checks and records the metadata of a reply; for callers that use the predictor directly."""
        if prediction.model.hash != self.model.hash:
            raise ReplyInvalid(
                "the server changed its bundle during this experiment",
                got=prediction.model.hash[:12],
                expected=self.model.hash[:12],
                hint="Start again (--force), or choose the old bundle with --model.",
            )
        self.assumed += [line for line in prediction.assumed if line not in self.assumed]
        self.notes[:] = merged([*self.notes, *prediction.notes])

    def log(self) -> dict[str, Any]:
        """`assumed` and `notes` as JSON values, which an interrupted run keeps."""
        return {"assumed": self.assumed, "notes": [asdict(note) for note in self.notes]}

    def resume(self, log: Mapping[str, Any]) -> None:
        """Continues with what an interrupted run was told."""
        self.assumed[:] = dict.fromkeys([*log.get("assumed", ()), *self.assumed])
        self.notes[:] = merged([*(Note(**note) for note in log.get("notes", ())), *self.notes])

    @property
    def attributes(self) -> dict[str, Any]:
        """The mouse, the model, and what was held fixed, as attributes of a dataset."""
        units = {channel.name: channel.unit for channel in (*self.mouse.behavior, *self.mouse.pupil_center)}
        return {
            "mouse": self.mouse.mouse_id,
            "model": self.model.name,
            "model_version": self.model.version or "",
            "model_hash": self.model.hash,
            "simulated": int(self.model.simulated),  # NetCDF attributes cannot be booleans
            "standardized_inputs": int(self.mouse.standardized_inputs),
            "notice": self.model.notice or "",
            "state": self.state.get("state", "median"),
            "held": ", ".join(
                f"{name} {value:.4g} {units.get(name, '')}".rstrip() for name, value in self.held.items()
            ),
            "assumed": "\n".join(self.assumed),
            "notes": "\n".join(map(str, self.notes)),
        }

    def dataset(self, variables: Mapping[str, Any], coords: Mapping[str, Any] | None = None) -> xarray.Dataset:
        """A dataset over these neurons: `neuron` holds the ids, with cortical coordinates and test scores.

        Args:
            variables: name -> (dims, values, {"units": ...}), as xarray takes them.
            coords: more coordinates.
        """
        neurons = self.neurons
        um = {"units": "um", "long_name": "cortical position"}
        own = {
            "neuron": ("neuron", neurons.neuron_ids, {"long_name": "unit id of the recording"}),
            **{f"{axis}_um": ("neuron", neurons.coordinates_um[:, i], um) for i, axis in enumerate("xyz")},
            **{name: ("neuron", score, {"units": "1"}) for name, score in neurons.scores.items()},
        }
        return needed("xarray").Dataset(dict(variables), coords={**own, **(coords or {})}, attrs=self.attributes)


def _arguments(state: Mapping[str, Any], mouse: MouseDetail) -> dict[str, Any]:
    """What is not None, with `behavior` only for channels that have no argument of their own."""
    given = {name: value for name, value in state.items() if value is not None}
    behavior = given.pop("behavior", {})
    known = {channel.name: channel.unit for channel in mouse.behavior}
    for name in behavior:
        if name in given:
            raise InvalidArgument(f"{name} is given twice", got=f"{name} and behavior", expected="one of them")
        if name not in known:
            expected = ", ".join(f"{channel} [{unit}]" for channel, unit in known.items())
            raise InvalidArgument(
                f"mouse {mouse.mouse_id!r} has no such behaviour channel", got=name, expected=expected
            )
    return given | channel_arguments(behavior)


def _piece(value: Any, piece: slice, n_images: int, *, pair: bool) -> Any:
    """The part of a behaviour value that belongs to some of the images."""
    if isinstance(value, Mapping):
        return {name: _piece(one, piece, n_images, pair=False) for name, one in value.items()}
    array = np.asarray(value)
    per_image = array.ndim == (2 if pair else 1) and len(array) == n_images
    return array[piece] if per_image else value


def _by_id(neurons: NeuronTable, neuron_ids: Sequence[int]) -> NeuronTable:
    position = {int(neuron_id): row for row, neuron_id in enumerate(neurons.neuron_ids)}
    unknown = [int(neuron_id) for neuron_id in neuron_ids if int(neuron_id) not in position]
    if unknown or not len(neuron_ids):
        raise InvalidArgument(
            f"mouse {neurons.mouse!r} has no such neurons" if unknown else "neuron_ids is empty",
            got=", ".join(map(str, unknown[:5])) or "an empty list",
            expected=f"ids as `v1t neurons {neurons.mouse}` lists them",
        )
    return neurons.rows(np.array([position[int(neuron_id)] for neuron_id in neuron_ids]))


def _best(neurons: NeuronTable, n: int) -> NeuronTable:
    for score in neurons.scores.values():
        if np.isfinite(score).any():
            order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
            return neurons.rows(order[:n])
    raise InvalidArgument(
        f"no test scores of mouse {neurons.mouse!r} are known",
        expected="neuron ids",
        hint="Use --neuron-ids 12,99,7, or evaluate the twin before exporting it.",
    )
