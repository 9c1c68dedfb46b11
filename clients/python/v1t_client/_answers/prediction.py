"""Predictions: responses with their neuron ids, units and model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from v1t_client._answers.html import html_card, origin_facts
from v1t_client._answers.notes import Note, merged
from v1t_client._answers.nwb import write_nwb
from v1t_client._answers.saving import save
from v1t_client._errors import InvalidArgument, ModelChanged
from v1t_client._extras import needed

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Model", "Prediction", "check_same_model", "concatenated", "count"]

_SHOWN = 5  # neurons in a notebook's table


@dataclass(frozen=True)
class Model:
    """The bundle that made a prediction.

    Attributes:
        name: the bundle's name.
        hash: SHA-256 of its manifest, which covers every weight.
        members: how many networks are averaged.
        simulated: True if it was trained on a simulated recording.
        notice: shown with every answer, such as that the recording was simulated.
        version: of the model; None from older servers.
    """

    name: str
    hash: str
    members: int = 1
    simulated: bool = False
    notice: str | None = None
    version: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Predicted responses of one mouse's neurons.

    Attributes:
        responses: (B, n) float32, predicted spikes or deconvolved calcium, in `units`.
        neuron_ids: (n,) int64, the recording's unit ids: column j of `responses` is neuron `neuron_ids[j]`.
        mouse: mouse id.
        units: "standardized" (divided by the neuron's response std) or "raw".
        model: the bundle that made the prediction.
        spread: (B, n) float32, standard deviation over the ensemble's members; None unless requested.
        assumed: what the server filled in or changed, one sentence each. Check it.
        state: the named state that filled in behaviour and gaze that were left out; None from older servers.
        notes: what to know about the inputs, such as that they are outside what was recorded.
        images: (B,) file name of each image; empty if the images do not come from files of one image.
        request_id: identifies the request in the server's log.
    """

    responses: npt.NDArray[np.float32]
    neuron_ids: npt.NDArray[np.int64]
    mouse: str
    units: str
    model: Model
    spread: npt.NDArray[np.float32] | None = None
    assumed: tuple[str, ...] = field(default=())
    state: str | None = None
    notes: tuple[Note, ...] = field(default=())
    images: tuple[str, ...] = field(default=())
    request_id: str | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.responses)

    def __repr__(self) -> str:
        n_images, n_neurons = self.responses.shape
        lines = [
            f"<Prediction: mouse {self.mouse!r}, {count(n_images, 'image')} x {count(n_neurons, 'neuron')}>",
            f"  responses   {_describe(self.responses)}, {self.units}",
            f"  spread      {_describe(self.spread) if self.spread is not None else 'not asked for (spread=True)'}",
            f"  neuron_ids  {_abridge(self.neuron_ids)}",
            f"  model       {self.model.name} {self.model.hash[:12]}, {count(self.model.members, 'member')}",
        ]
        if self.model.simulated:
            lines.append(f"  simulated   {self.model.notice or 'trained on a simulated recording'}")
        elif self.model.notice:
            lines.append(f"  notice      {self.model.notice}")
        lines += [f"  assumed     {line}" for line in self.assumed]
        lines += [f"  note        {note}" for note in self.notes]
        lines.append(
            "  more        .responses[image, neuron], .select(neuron_ids), .to_pandas(), .to_xarray(), .save(path)"
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        n_images, n_neurons = self.responses.shape
        mean = self.responses.mean(axis=0) if n_images else np.zeros(n_neurons, np.float32)
        top = np.argsort(-mean, kind="stable")[:_SHOWN]
        responses = self.responses[:, top]
        columns: dict[str, npt.NDArray[Any]] = {"neuron": self.neuron_ids[top]}
        if n_images == 1:
            columns["response"] = responses[0]
        elif n_images:
            columns |= {"mean": mean[top], "lowest": responses.min(axis=0), "highest": responses.max(axis=0)}
        if self.spread is not None and n_images:
            columns["spread" if n_images == 1 else "mean spread"] = self.spread[:, top].mean(axis=0)
        over = "" if n_images == 1 else f" over {count(n_images, 'image')}"
        return html_card(
            f"Prediction: {count(n_images, 'image')} x {count(n_neurons, 'neuron')}, {self.units} responses",
            origin_facts(self),
            columns,
            f"the {count(len(top), 'neuron')} with the strongest response{over}",
        )

    def select(self, neuron_ids: Sequence[int] | npt.NDArray[np.int64]) -> Prediction:
        """The prediction for these neurons only, in this order.

        Raises:
            InvalidArgument: a neuron is not part of this prediction.
        """
        position = {int(neuron_id): i for i, neuron_id in enumerate(self.neuron_ids)}
        wanted = [int(neuron_id) for neuron_id in neuron_ids]
        missing = [neuron_id for neuron_id in wanted if neuron_id not in position]
        if missing:
            raise InvalidArgument(
                f"{count(len(missing), 'neuron')} not in this prediction",
                got=_abridge(np.asarray(missing)),
                expected=f"some of {_abridge(self.neuron_ids)}",
            )
        columns = [position[neuron_id] for neuron_id in wanted]
        return replace(
            self,
            responses=self.responses[:, columns],  # (B, n')
            neuron_ids=np.asarray(wanted, dtype=np.int64),
            spread=None if self.spread is None else self.spread[:, columns],
        )

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, as in the server's JSON reply, with the file names as `images` where they are known."""
        content = self.metadata()
        content["responses"] = self.responses.tolist()
        if self.spread is not None:
            content["spread"] = self.spread.tolist()
        return content

    def metadata(self) -> dict[str, Any]:
        """`to_dict()` without the responses: how they were made, and what their rows and columns are."""
        content: dict[str, Any] = {
            "request_id": self.request_id,
            "model": {
                name: getattr(self.model, name)
                for name in ("name", "version", "hash", "members", "simulated", "notice")
            },
            "mouse": self.mouse,
            "units": self.units,
            "state": self.state,
            "assumed": list(self.assumed),
            "notes": [asdict(note) for note in self.notes],
            "neuron_ids": self.neuron_ids.tolist(),
        }
        if self.images:
            content["images"] = list(self.images)
        return content

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The responses, so that `numpy.asarray(prediction)` and numpy's functions take a prediction."""
        if copy is False and dtype is not None and np.dtype(dtype) != self.responses.dtype:
            raise ValueError(f"responses are {self.responses.dtype}: as {np.dtype(dtype)} they have to be copied")
        return self.responses.astype(dtype or self.responses.dtype, copy=bool(copy))

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with one row per image and neuron, image by image.

        Its columns are `image` (0, 1, ...), `file` (where the images come from files), `neuron_id`, `response` and
        `spread` (where it was asked for). Mouse, model, units, assumptions and notes are in its `attrs`. As a matrix:
        `frame.pivot(index="image", columns="neuron_id", values="response")`.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = needed("pandas", extra="tables")
        n_images, n_neurons = self.responses.shape
        columns: dict[str, Any] = {"image": np.repeat(np.arange(n_images), n_neurons)}
        if self.images:
            columns["file"] = pandas.Categorical(self.images).repeat(n_neurons)
        columns |= {"neuron_id": np.tile(self.neuron_ids, n_images), "response": self.responses.ravel()}
        if self.spread is not None:
            columns["spread"] = self.spread.ravel()
        frame = pandas.DataFrame(columns)
        frame.attrs = {**self._labels(), "units": self.units}
        return frame

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Saves `to_pandas()` as a .parquet, or `to_xarray()` as a .nc (NetCDF) or .zarr.

        `pandas.read_parquet`, `xarray.open_dataset` and `xarray.open_zarr` read it, with its labels.

        Args:
            force: replace what is there.

        Raises:
            InvalidArgument: the path has another ending, exists, or cannot be written.
            MissingExtra: a package that writes this kind of file is not installed.
        """
        save(path, frame=self.to_pandas, dataset=self.to_xarray, force=force)

    def to_xarray(self) -> xarray.Dataset:
        """An `xarray.Dataset` with dimensions `image` (file names or numbers) and `neuron`.

        Mouse, model, assumptions and notes are attributes.

        Raises:
            MissingExtra: xarray is not installed.
        """
        xarray = needed("xarray", extra="xarray")
        dims = ("image", "neuron")
        variables: dict[str, Any] = {"responses": (dims, self.responses, {"units": self.units})}
        if self.spread is not None:
            variables["spread"] = (dims, self.spread, {"units": self.units, "long_name": "std over ensemble members"})
        return xarray.Dataset(
            variables,
            coords={
                "neuron": ("neuron", self.neuron_ids),
                "image": ("image", np.array(self.images) if self.images else np.arange(len(self))),
            },
            attrs=self._labels(),
        )

    def _labels(self) -> dict[str, Any]:
        """How it was made, as attributes of NetCDF, which cannot be booleans or lists."""
        return {
            "mouse": self.mouse,
            "model": self.model.name,
            "model_hash": self.model.hash,
            "members": self.model.members,
            "simulated": int(self.model.simulated),
            "notice": self.model.notice or "",
            "state": self.state or "",
            "assumed": "\n".join(self.assumed),
            "notes": "\n".join(map(str, self.notes)),
            "request_id": self.request_id or "",
        }

    def to_nwb(self, path: Path | str, *, force: bool = False) -> None:
        """Writes an NWB file, as a whole or not at all: a table of neurons with their responses, and one of images.

        `metadata()` becomes its notes.

        Raises:
            InvalidArgument: the path exists and `force` is not set, or cannot be written.
            MissingExtra: pynwb or xarray is not installed.
        """
        n_images, n_neurons = self.responses.shape
        write_nwb(
            self.to_xarray(),
            Path(path),
            title="responses",
            description=f"Mouse {self.mouse}, {count(n_images, 'image')}, {count(n_neurons, 'neuron')}, model "
            f"{self.model.name} {self.model.hash[:12]}.",
            provenance=json.dumps(self.metadata()),
            created="",
            simulated=self.model.simulated,
            force=force,
        )


def check_same_model(model_hash: str, prediction: Prediction) -> None:
    """Checks that the bundle of this hash made the prediction.

    Raises:
        ModelChanged: another bundle made it.
    """
    if prediction.model.hash != model_hash:
        raise ModelChanged(
            f"the server loaded another bundle named {prediction.model.name!r} in the meantime",
            got=prediction.model.hash[:12],
            expected=model_hash[:12],
            hint="Predictions of two models are never joined in one array. Start again.",
        )


def concatenated(predictions: Sequence[Prediction]) -> Prediction:
    """Joins predictions for consecutive images into one.

    Raises:
        ModelChanged: different bundles made them.
    """
    first = predictions[0]
    for prediction in predictions:
        check_same_model(first.model.hash, prediction)
    return replace(
        first,
        responses=np.concatenate([prediction.responses for prediction in predictions]),
        spread=None
        if first.spread is None
        else np.concatenate([prediction.spread for prediction in predictions if prediction.spread is not None]),
        assumed=tuple(dict.fromkeys(line for prediction in predictions for line in prediction.assumed)),
        notes=merged(note for prediction in predictions for note in prediction.notes),
        images=tuple(name for prediction in predictions for name in prediction.images),
    )


def count(n: int, noun: str) -> str:
    """`1 image`, `7,538 neurons`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _describe(values: npt.NDArray[np.float32]) -> str:
    text = f"{values.dtype} {values.shape}"
    if values.size:
        text += f", {values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}"
    return text


def _abridge(ids: npt.NDArray[Any], shown: int = 4) -> str:
    text = ", ".join(str(int(i)) for i in ids[:shown])
    return f"{text}, ... {int(ids[-1])} ({len(ids):,} in all)" if len(ids) > shown else text or "none"
