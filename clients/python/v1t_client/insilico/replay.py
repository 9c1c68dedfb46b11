"""Replays a receipt: the same experiment again, and what of its result comes out differently."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
    """A replayed result beside the one that its receipt is of.

    Attributes:
        before: the receipt that was replayed.
        result: what came out now.
        differences: of each variable, the largest difference over its largest magnitude; inf where only one of the two
            has it or the shapes differ. None if the old result is not there to compare with.
    """

    before: Receipt
    result: Result
    differences: dict[str, float] | None

    @property
    def same_bundle(self) -> bool:
        return bool(self.before.model.get("hash") == self.result.receipt.model.get("hash"))

    def same(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the bundle is the same and every variable came out within the tolerance."""
        return self.same_bundle and max((self.differences or {}).values(), default=0.0) <= tolerance

    def report(self, tolerance: float = TOLERANCE) -> str:
        """What differs, worst first, in lines for the terminal."""
        lines = []
        if not self.same_bundle:
            was, now = (str(receipt.model.get("hash"))[:12] for receipt in (self.before, self.result.receipt))
            lines.append(f"another bundle answered: {was} then, {now} now; a difference may be the model's")
        there = versions()
        changed = [
            f"{name} {version} -> {there.get(name, 'missing')}"
            for name, version in self.before.versions.items()
            if there.get(name) != version
        ]
        if changed:
            lines.append(f"other versions: {', '.join(changed)}")
        if self.differences is None:
            return "\n".join([*lines, "the old result is not beside its receipt, so nothing was compared"])
        worst = sorted(((d, name) for name, d in self.differences.items() if d > 0), reverse=True)
        if not worst:
            return "\n".join([*lines, f"the same, bit by bit: {len(self.differences)} variables"])
        verdict = "the same" if worst[0][0] <= tolerance else "NOT the same"
        equal = len(self.differences) - len(worst)
        lines.append(f"{verdict} within {tolerance:g} of each variable's largest value; {equal} are equal bit by bit")
        lines += [f"  {name:<28} {difference:.2g}" for difference, name in worst[:10]]
        return "\n".join(lines)


def replay(
    path: Path, predictor: Predictor, *, output: Path | None = None, force: bool = False, quiet: bool = False
) -> Replay:
    """Does again what a receipt says, and compares with the result beside it.

    Args:
        path: a receipt.json, or the folder of a result.
        output: keep the new result here; resumable as any run. In memory if left out.

    Raises:
        InvalidArgument: it is no receipt, or of an experiment or parameters that this version does not know.
    """
    before = Receipt.load(path)
    if before.experiment not in EXPERIMENTS:
        raise InvalidArgument(
            "the receipt is of no experiment of this version", got=before.experiment, expected=", ".join(EXPERIMENTS)
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
    """Variable -> the largest difference over the largest magnitude of the two; 0 only where they are equal."""
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
