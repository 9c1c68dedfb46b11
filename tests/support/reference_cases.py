"""The names of the reference's weights, each a case for tests. Read without torch, which `support.golden` needs."""

from __future__ import annotations

from support.checkout import REFERENCE

__all__ = ["CASES", "ENSEMBLES", "RUNS", "SENSORIUM"]


def _names(pattern: str) -> list[str]:
    found = {path.relative_to(REFERENCE).parts[0] for path in REFERENCE.glob(pattern)}
    return sorted(found) or ["no-reference"]  # a case that the fixture `reference` skips or fails


# Listed, so that new folders are tested too.
RUNS = _names("*/args.yaml")
ENSEMBLES = _names("*/member0/args.yaml")
SENSORIUM = sorted(path.stem for path in REFERENCE.glob("sensorium-pretrained/*.pth")) or ["no-reference"]
CASES = [*RUNS, *ENSEMBLES, *SENSORIUM]
