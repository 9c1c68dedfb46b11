"""A result: labelled arrays with units and neurons, a table with a row per neuron, figures, and a receipt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client.insilico.framework.receipt import RECEIPT, Receipt

if TYPE_CHECKING:
    import xarray

__all__ = ["Result"]

ARRAYS = "result.nc"


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment found.

    Attributes:
        dataset: an `xarray.Dataset`; its dimension `neuron` holds neuron ids and has coordinates x_um, y_um, z_um.
            Every variable has `units` in its attributes.
        receipt: how it came to be.
    """

    dataset: xarray.Dataset
    receipt: Receipt

    def table(self) -> dict[str, np.ndarray]:
        """One row per neuron: every variable and coordinate whose only dimension is `neuron`, by name.

        Of a result about images, such as attention, one row per image.
        """
        row = self._row
        columns = {"neuron_id" if row == "neuron" else row: self.dataset[row].values}
        for name in [*self.dataset.coords, *self.dataset.data_vars]:
            if name != row and self.dataset[name].dims == (row,):
                columns[str(name)] = self.dataset[name].values
        return columns

    @property
    def _row(self) -> str:
        return "neuron" if "neuron" in self.dataset.dims else "image"

    def write(self, folder: Path, figures: Mapping[str, Any]) -> None:
        """Makes the folder: result.nc, neurons.parquet or images.parquet, receipt.json, figures as .png and .pdf."""
        folder.mkdir()
        dataset = self.dataset.assign_attrs(receipt=self.receipt.to_json())
        encoding = {str(name): {"zlib": True, "complevel": 4} for name in _large(dataset)}
        needed("h5netcdf")
        dataset.to_netcdf(folder / ARRAYS, engine="h5netcdf", encoding=encoding)
        parquet, arrow = needed("pyarrow.parquet"), needed("pyarrow")
        parquet.write_table(arrow.table(self.table()), folder / f"{self._row}s.parquet")
        for name, figure in figures.items():
            # No date inside, so that the same result gives the same file.
            figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
            figure.set_layout_engine("none")  # laid out once: that is most of the time
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        (folder / RECEIPT).write_text(self.receipt.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> Result:
        """Reads what a finished run wrote.

        Raises:
            InvalidArgument: there is no result in this folder.
        """
        folder = Path(folder)
        if not (folder / ARRAYS).is_file():
            unfinished = folder.with_name(f"{folder.name}.partial").is_dir()
            hint = "An unfinished run lies beside it: repeat its command to finish it." if unfinished else None
            raise InvalidArgument("there is no result in this folder", got=folder, expected=ARRAYS, hint=hint)
        with needed("xarray").open_dataset(folder / ARRAYS, engine="h5netcdf") as stored:
            dataset = stored.load()
        dataset.attrs.pop("receipt", None)
        return cls(dataset, Receipt.load(folder))


def _large(dataset: xarray.Dataset) -> Iterable[Any]:
    return [name for name, values in dataset.data_vars.items() if values.size > 4096 and values.dtype.kind in "iuf"]
