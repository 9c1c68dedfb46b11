"""Replays a receipt: runs the same experiment again, and compares the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._predictor import Predictor
from v1t_client.insilico.catalogue import EXPERIMENTS
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import perform
from v1t_client.insilico.framework.receipt import RECEIPT, Receipt, versions
from v1t_client.insilico.framework.result import Result

if TYPE_CHECKING:
    import xarray

__all__ = ["TOLERANCE", "Replay", "differences", "replay"]

TOLERANCE = 1e-3  # of a variable's largest magnitude: other machines and batches round differently


@dataclass(frozen=True, eq=False)
class Replay:
    """A replayed result and its comparison with the original.

    Attributes:
        before: the receipt that was replayed.
        result: the new result.
        differences: for each variable, the largest difference divided by its largest magnitude; inf if only one result
            has it or the shapes differ. None if there is no original result to compare with.
    """

    before: Receipt
    result: Result
    differences: dict[str, float] | None

    @property
    def same_bundle(self) -> bool:
        return bool(self.before.model.get("hash") == self.result.receipt.model.get("hash"))

    def same(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the bundle is the same and all variables agree within the tolerance."""
        return self.same_bundle and max((self.differences or {}).values(), default=0.0) <= tolerance

    def report(self, tolerance: float = TOLERANCE) -> str:
        """The differences, largest first, as lines for the terminal."""
        lines = []
        if not self.same_bundle:
            was, now = (str(receipt.model.get("hash"))[:12] for receipt in (self.before, self.result.receipt))
            lines.append(f"another bundle answered: {was} then, {now} now; it may be the cause of a difference")
        current = versions()
        changed = [
            f"{name} {version} -> {current.get(name, 'missing')}"
            for name, version in self.before.versions.items()
            if current.get(name) != version
        ]
        if changed:
            lines.append(f"other versions: {', '.join(changed)}")
        if self.differences is None:
            return "\n".join([*lines, "the original result is not beside its receipt, so nothing was compared"])
        worst = sorted(((d, name) for name, d in self.differences.items() if d > 0), reverse=True)
        if not worst:
            return "\n".join([*lines, f"the same, bit by bit: {counted(len(self.differences), 'variable')}"])
        verdict = "the same" if worst[0][0] <= tolerance else "NOT the same"
        equal = len(self.differences) - len(worst)
        lines.append(f"{verdict} within {tolerance:g} of each variable's largest value; equal bit by bit: {equal}")
        lines += [f"  {name:<28} {difference:.2g}" for difference, name in worst[:10]]
        return "\n".join(lines)


def replay(
    path: Path, predictor: Predictor, *, output: Path | None = None, force: bool = False, quiet: bool = False
) -> Replay:
    """Runs the experiment of a receipt again, and compares with the result beside it.

    Args:
        path: a receipt.json, or the folder of a result.
        output: folder for the new result, resumable like any run; in memory by default.

    Raises:
        InvalidArgument: this is not a receipt, or this version does not know its experiment or parameters.
    """
    before = Receipt.load(path)
    if before.experiment not in EXPERIMENTS:
        raise InvalidArgument(
            "unknown experiment in the receipt", got=before.experiment, expected=", ".join(EXPERIMENTS)
        )
    experiment = EXPERIMENTS[before.experiment].from_dict(before.parameters)
    if output is None:
        result = experiment.run(predictor, Work(quiet=quiet))
    else:
        result = perform(
            experiment, predictor, output, force=force, quiet=quiet, where=before.predictor, command=before.command
        )
    folder = path if path.is_dir() else path.parent
    is_beside = (path if path.is_dir() else path.name == RECEIPT) and (folder / "result.nc").is_file()
    found = differences(Result.load(folder).dataset, result.dataset) if is_beside else None
    return Replay(before, result, found)


def differences(before: xarray.Dataset, after: xarray.Dataset) -> dict[str, float]:
    """Variable -> the largest difference divided by the largest magnitude of the two; 0 only if they are equal."""
    names = [str(name) for name in {**before.variables, **after.variables}]
    return {
        name: _difference(before[name].values, after[name].values)
        if name in before.variables and name in after.variables
        else np.inf
        for name in names
    }


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return np.inf
    if a.dtype.kind not in "iufb" or b.dtype.kind not in "iufb":
        return 0.0 if (a == b).all() else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    gap = np.abs(a - b).max(initial=0.0)
    return float(gap / max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))) if gap else 0.0
