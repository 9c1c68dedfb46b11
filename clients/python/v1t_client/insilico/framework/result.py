"""Results: labelled arrays with units and neuron ids, a table with one row per neuron, figures, and a receipt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v1t_client._answers.html import html_card, model_facts
from v1t_client._answers.notes import Note
from v1t_client._answers.nwb import write_nwb
from v1t_client._answers.prediction import Model, count
from v1t_client._answers.saving import save
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client.insilico.framework.plotting import add_footer, styled
from v1t_client.insilico.framework.receipt import RECEIPT, Receipt

if TYPE_CHECKING:
    import pandas
    import xarray

__all__ = ["Result", "variable"]

ARRAYS = "result.nc"
_ROWS, _COLUMNS = 5, 7  # of a notebook's table


@dataclass(frozen=True, eq=False)
class Result:
    """The result of an experiment.

    Attributes:
        dataset: an `xarray.Dataset`. Its dimension `neuron` has neuron ids and coordinates x_um, y_um, z_um; every
            variable has the attribute `units`.
        receipt: how it was made.
    """

    dataset: xarray.Dataset
    receipt: Receipt

    def table(self) -> dict[str, np.ndarray]:
        """One row per neuron: every variable and coordinate whose only dimension is `neuron`, by name.

        Results about images, such as attention, have one row per image.
        """
        row = self._row
        columns = {"neuron_id" if row == "neuron" else row: self.dataset[row].values}
        for name in [*self.dataset.coords, *self.dataset.data_vars]:
            if name != row and self.dataset[name].dims == (row,):
                columns[str(name)] = self.dataset[name].values
        return columns

    def to_pandas(self) -> pandas.DataFrame:
        """`table()` as a `pandas.DataFrame`, with the receipt in its `attrs`."""
        frame = needed("pandas").DataFrame(self.table())
        frame.attrs = {**{str(name): str(value) for name, value in self.dataset.attrs.items()}, **self._receipt()}
        return frame

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Saves `to_pandas()` as a .parquet, or the dataset as a .nc (NetCDF) or .zarr, each with the receipt.

        Args:
            force: replace what is there.

        Raises:
            InvalidArgument: the path has another ending, exists, or cannot be written.
            MissingExtra: a package that writes this kind of file is not installed.
        """
        save(path, frame=self.to_pandas, dataset=lambda: self.dataset.assign_attrs(self._receipt()), force=force)

    def _receipt(self) -> dict[str, str]:
        return {"receipt": self.receipt.to_json()}

    def _repr_html_(self) -> str:
        attributes, receipt = self.dataset.attrs, self.receipt
        known = {name: receipt.model[name] for name in Model.__dataclass_fields__ if name in receipt.model}
        facts = [("mouse", str(attributes.get("mouse", "?"))), *model_facts(Model(**known))]
        if attributes.get("state"):
            held = f": {attributes['held']}" if attributes.get("held") else ""
            facts.append(("state", f"{attributes['state']}{held}"))
        facts += [("assumed", line) for line in receipt.assumed]
        facts += [("note", str(Note(**note))) for note in receipt.notes]
        table = self.table()
        first = next(iter(table))
        names = [name for name in table if name == first or name not in self.dataset.coords]
        n, left = len(table[first]), len(names[_COLUMNS:])
        more = f"{count(left, 'more column')} in .table(), " if left else ""
        caption = f"the first {min(n, _ROWS)} of {count(n, self._row)}; {more}arrays in .dataset"
        shown = {name: table[name][:_ROWS] for name in names[:_COLUMNS]}
        return html_card(f"{receipt.experiment}: {count(n, self._row)}", facts, shown, caption)

    @property
    def _row(self) -> str:
        return "neuron" if "neuron" in self.dataset.dims else "image"

    def write(self, folder: Path, figures: Mapping[str, Any]) -> None:
        """Writes a new folder: result.nc, neurons.parquet or images.parquet, receipt.json, figures as .png and .pdf."""
        folder.mkdir()
        dataset = self.dataset.assign_attrs(self._receipt())
        encoding = {str(name): {"zlib": True, "complevel": 4} for name in _large(dataset)}
        needed("h5netcdf")
        dataset.to_netcdf(folder / ARRAYS, engine="h5netcdf", encoding=encoding)
        parquet, arrow = needed("pyarrow.parquet"), needed("pyarrow")
        about = {str(name): str(value) for name, value in self.dataset.attrs.items()}
        parquet.write_table(arrow.table(self.table(), metadata=about), folder / f"{self._row}s.parquet")
        for name, figure in figures.items():
            with styled():
                # Without a date, so that the same result gives the same file.
                figure.savefig(folder / f"{name}.png", metadata={"Software": None})
                figure.set_layout_engine("none")  # keep the layout of the PNG: computing it takes most of the time
                figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        (folder / RECEIPT).write_text(self.receipt.to_json(), encoding="utf-8")

    def to_nwb(self, path: Path | str, *, force: bool = False) -> None:
        """Writes an NWB file, as a whole or not at all: a table of neurons, other dimensions, and the receipt as notes.

        Raises:
            InvalidArgument: the path exists and `force` is not set, or cannot be written.
            MissingExtra: pynwb is not installed.
        """
        write_nwb(
            self.dataset,
            Path(path),
            title=self.receipt.experiment,
            description=self.caption(),
            provenance=self.receipt.to_json(),
            created=self.receipt.created,
            simulated=bool(self.receipt.model.get("simulated")),
            force=force,
        )

    def drawn(self, draw: Callable[[Result], dict[str, Any]]) -> dict[str, Any]:
        """The figures of `draw` by name, in the style of all figures and with the caption at their foot."""
        with styled():
            figures = draw(self)
            for figure in figures.values():
                add_footer(figure, self.caption())
        return figures

    def caption(self) -> str:
        """What a figure must say wherever it is pasted: mouse, model, what was held fixed, whether it is simulated."""
        model, attributes = self.receipt.model, self.dataset.attrs
        version = f"@{model['version']}" if model.get("version") else ""
        n = count(self.dataset.sizes[self._row], self._row)
        parts = [
            f"mouse {attributes.get('mouse', '?')}, n = {n}, "
            f"model {model.get('name')}{version} {str(model.get('hash'))[:12]}".rstrip()
        ]
        if model.get("simulated"):
            parts.insert(0, "SIMULATED: no animal was recorded")
        if attributes.get("state"):
            held = f": {attributes['held']}" if attributes.get("held") else ""
            parts.append(f"behaviour, where it is not varied, held at the state '{attributes['state']}'{held}")
        if attributes.get("standardized_inputs"):
            parts.append("standardised inputs")
        outside = sorted({str(note["input"]) for note in self.receipt.notes if note["code"] == "outside_recording"})
        if outside:
            parts.append(f"outside what was recorded: {', '.join(outside)}")
        return "; ".join(parts)

    @classmethod
    def load(cls, folder: Path | str) -> Result:
        """Reads the folder of a finished run.

        Raises:
            InvalidArgument: there is no result in this folder.
        """
        folder = Path(folder)
        if not (folder / ARRAYS).is_file():
            unfinished = folder.with_name(f"{folder.name}.partial").is_dir()
            hint = "There is an unfinished run of it; run its command again to finish it." if unfinished else None
            raise InvalidArgument("there is no result in this folder", got=folder, expected=ARRAYS, hint=hint)
        with needed("xarray").open_dataset(folder / ARRAYS, engine="h5netcdf") as stored:
            dataset = stored.load()
        dataset.attrs.pop("receipt", None)
        return cls(dataset, Receipt.load(folder))


def _large(dataset: xarray.Dataset) -> Iterable[Any]:
    return [name for name, values in dataset.data_vars.items() if values.size > 4096 and values.dtype.kind in "iuf"]


def variable(values: Any, units: str, long_name: str = "", *, dims: str | tuple[str, ...] = "neuron") -> Any:
    """A variable or coordinate as `xarray.Dataset` takes it: dimensions, values and attributes."""
    return dims, values, {"units": units, **({"long_name": long_name} if long_name else {})}
