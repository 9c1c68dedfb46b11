"""One table over mice: does attention follow the gaze? (paper, Table 2)

Each mouse has its own result of `v1t attention`, with the correlation of the maps' centre of mass and the pupil centre,
horizontally and vertically. The paper prints its absolute value with stars.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from v1t_client._errors import InvalidArgument
from v1t_client.insilico.comparisons.markdown import markdown_table
from v1t_client.insilico.comparisons.statistics import holm, p_text, stars
from v1t_client.insilico.framework.result import Result

__all__ = ["AttentionRow", "AttentionTable"]


@dataclass(frozen=True)
class AttentionRow:
    """One mouse.

    Attributes:
        correlation: of the centre of mass of attention and the pupil centre, along x and y, with its sign; NaN where
            one of them does not vary. p: two-sided. p_holm: corrected for all correlations of the table.
    """

    mouse: str
    model: str
    model_hash: str
    simulated: bool
    n_images: int
    correlation: tuple[float, float]
    p: tuple[float, float]
    p_holm: tuple[float, float]


@dataclass(frozen=True)
class AttentionTable:
    """A row per mouse and model, in the order of the results."""

    rows: tuple[AttentionRow, ...]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> AttentionTable:
        """Reads finished results of `AttentionMaps`; needs no server.

        Raises:
            InvalidArgument: a folder has no such result or no pupil centres, or two have the same mouse and model.
        """
        results = [_attention(folder) for folder in folders]
        p_values = [float(result.dataset[f"p_value_{axis}"]) for result in results for axis in "xy"]
        corrected = holm(p_values)
        rows: list[AttentionRow] = []
        seen: dict[tuple[str, str], Path] = {}
        for i, (folder, result) in enumerate(zip(folders, results, strict=True)):
            data = result.dataset
            key = (str(data.attrs["mouse"]), str(data.attrs["model_hash"]))
            if key in seen:
                raise InvalidArgument(
                    "two results are of the same mouse and twin",
                    got=f"mouse {key[0]} by {data.attrs['model']} in {seen[key]} and {folder}",
                    expected="one result per mouse and twin",
                )
            seen[key] = folder
            pair = slice(2 * i, 2 * i + 2)
            rows.append(
                AttentionRow(
                    mouse=key[0],
                    model=str(data.attrs["model"]),
                    model_hash=key[1],
                    simulated=bool(data.attrs.get("simulated")),
                    n_images=int(data.sizes["image"]),
                    correlation=(float(data["correlation_x"]), float(data["correlation_y"])),
                    p=tuple(p_values[pair]),  # type: ignore[arg-type]
                    p_holm=tuple(corrected[pair]),  # type: ignore[arg-type]
                )
            )
        return cls(tuple(rows))

    def to_markdown(self) -> str:
        """The table with its legend; a terminal shows its columns aligned. The last row of a model is its mean."""
        several = len({row.model_hash for row in self.rows}) > 1
        header = ["mouse", *(["model"] if several else []), "images"]
        header += [word for axis in ("horizontal", "vertical") for word in (axis, "", "p", "Holm")]
        table = []
        for model_hash in dict.fromkeys(row.model_hash for row in self.rows):
            rows = [row for row in self.rows if row.model_hash == model_hash]
            model = [f"{rows[0].model} {model_hash[:6]}"] if several else []
            for row in rows:
                cells = []
                for r, p, p_holm in zip(row.correlation, row.p, row.p_holm, strict=True):
                    cells += [_number(r), stars(p), p_text(p), p_text(p_holm)]
                table.append([row.mouse, *model, f"{row.n_images:,}", *cells])
            if len(rows) > 1:
                absolute = np.abs([row.correlation for row in rows])
                cells = [word for k in (0, 1) for word in (_mean_and_sd(absolute[:, k]), "", "", "")]
                table.append(["mean ± sd", *model, "", *cells])
        lines = [
            markdown_table(header, table),
            "",
            *([] if several else [f"Model: {self.rows[0].model} {self.rows[0].model_hash[:12]}."]),
            "Absolute correlation of the centre of mass of attention with the pupil centre, over images; p: two-sided, "
            "with stars: **** p < 0.0001, *** p < 0.001, ** p < 0.01, * p < 0.05, n.s. not significant; Holm: p "
            f"corrected for the {2 * len(self.rows)} correlations of this table.",
        ]
        if simulated := dict.fromkeys(row.mouse for row in self.rows if row.simulated):
            lines = [f"SIMULATED: no animal was recorded (mouse {', '.join(simulated)})", "", *lines]
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A row per mouse, with the signs of the correlations."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        of_axis = [f"{name}_{axis}" for axis in "xy" for name in ("correlation", "p_value", "p_holm", "stars")]
        writer.writerow(["mouse", "model", "model_hash", "simulated", "images", *of_axis])
        for row in self.rows:
            cells: list[object] = []
            for r, p, p_holm in zip(row.correlation, row.p, row.p_holm, strict=True):
                cells += [r, p, p_holm, stars(p)]
            writer.writerow([row.mouse, row.model, row.model_hash, int(row.simulated), row.n_images, *cells])
        return stream.getvalue()


def _attention(folder: Path) -> Result:
    result = Result.load(folder)
    if result.receipt.experiment != "attention":
        raise InvalidArgument(
            "this is not a result of attention",
            got=f"{folder}, a result of v1t {result.receipt.experiment}",
            expected="folders of v1t attention",
        )
    if "correlation_x" not in result.dataset:
        raise InvalidArgument(
            "this result has no pupil centres, so its attention was not correlated with the gaze",
            got=folder,
            hint="Repeat v1t attention with trials that have pupil_center.npy, as `python -m training trials` writes "
            "them, or with --trial-pupil-center.",
        )
    return result


def _number(r: float) -> str:
    return f"{abs(r):.3f}" if np.isfinite(r) else "-"


def _mean_and_sd(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.3f} ± {known.std(ddof=1):.3f}" if len(known) > 1 else "-"
