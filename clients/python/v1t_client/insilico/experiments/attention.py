"""Attention rollout over trials (V1T, Fig. 3c-d, A.3, Table 2): where the core looks, and whether that follows gaze."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.attention import Attention
from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._options import count
from v1t_client.insilico.experiments.attention_figures import figures_of
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.stimuli.trials import Trials

if TYPE_CHECKING:
    import xarray

__all__ = ["AttentionMaps", "center_of_mass", "correlation"]

SAVED_EVERY = 256  # images
SHOWN = 12  # images that the result contains, for the figure


@dataclass(frozen=True, kw_only=True)
class AttentionMaps(Experiment):
    """Attention maps of trials, each with its own image, behaviour and gaze; see `Trials.open` for the paths.

    Attributes:
        images: a .npy file, a folder of image files, or a folder with images.npy, behavior.npy and pupil_center.npy.
        trial_behavior, trial_pupil_center: .npy files with one row per image.
        limit: use only the first `limit` trials.
    """

    name: ClassVar[str] = "attention"
    summary: ClassVar[str] = "map where a transformer's core looks, and correlate it with gaze"
    examples: ClassVar[str] = """\
examples:
  v1t attention A --images trials/ --output attention
  v1t attention A --images images.npy --trial-pupil-center gaze.npy --output attention
  v1t attention A --images photographs/ --running-speed 10 --output attention

trials/ contains images.npy (B, H, W) and, optionally, behavior.npy (a row per image, a column per behaviour
channel as `v1t mouse` lists them) and pupil_center.npy (B, 2). The table has one row per image. Only twins with a cls
token have attention maps.
"""

    images: str
    trial_behavior: str | None = None
    trial_pupil_center: str | None = None
    limit: int | None = None

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        trials = Trials.open(
            Path(self.images),
            subject.mouse.image_shape,
            channels=[channel.name for channel in subject.mouse.behavior],
            behavior=None if self.trial_behavior is None else Path(self.trial_behavior),
            pupil_center=None if self.trial_pupil_center is None else Path(self.trial_pupil_center),
            standardized=subject.mouse.standardized_inputs,
        )
        n = len(trials) if self.limit is None else min(self.limit, len(trials))
        if n < 1:
            raise InvalidArgument("no trials are left", got=f"limit {self.limit}", expected="at least 1")
        maps = _maps(subject, trials, n, work)  # (n, M, h, w)
        mean = maps.mean(1)
        variables: dict[str, Any] = {
            "attention": variable(mean, "1", "rollout, mean of members", dims=("image", "map_y", "map_x")),
        }
        of_mean, of_members = center_of_mass(mean), center_of_mass(maps)  # (n, 2), (n, M, 2)
        for i, axis in enumerate("xy"):
            variables[f"center_{axis}"] = variable(
                of_mean[:, i], "1", "of the map's width or height, from its middle", dims="image"
            )
        pupil = trials.pupil_center
        if pupil is not None:
            for i, axis in enumerate("xy"):
                r, p = correlation(of_mean[:, i], pupil[:n, i])
                each = [correlation(of_members[:, m, i], pupil[:n, i])[0] for m in range(maps.shape[1])]
                variables |= {
                    f"pupil_center_{axis}": variable(pupil[:n, i], "recording", dims="image"),
                    f"correlation_{axis}": variable(r, "1", "of center with pupil center", dims=()),
                    f"p_value_{axis}": variable(p, "1", "two-sided, of that correlation", dims=()),
                    f"member_correlation_{axis}": variable(np.array(each), "1", dims="member"),
                }
        shown = _shown_trials(n, pupil)
        pixels = np.concatenate([trials.read(slice(i, i + 1))[0] for i in shown])
        variables["shown"] = variable(shown, "1", "images that are kept below", dims="nth")
        variables["shown_image"] = variable(pixels, "recording", dims=("nth", "channel", "y", "x"))
        return needed("xarray").Dataset(
            variables,
            coords={"image": _numbers_or_names(trials, n)},
            attrs=subject.attributes,
        )

    def draw(self, result: Result) -> dict[str, Any]:
        return figures_of(result)

    def summarize(self, result: Result) -> str:
        dataset = result.dataset
        lines = [counted(dataset.sizes["image"], "attention map")]
        for axis in "xy":
            if f"correlation_{axis}" in dataset:
                r, p = dataset[f"correlation_{axis}"].item(), dataset[f"p_value_{axis}"].item()
                lines.append(f"center of mass and pupil center, {axis}: |r| = {abs(r):.3f}, p = {p:.2g}")
        if len(lines) == 1:
            lines.append("no pupil centers were given, so nothing is correlated with gaze")
        return "\n".join(lines)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        trials = parser.add_argument_group("trials")
        trials.add_argument(
            "--images", required=True, metavar="PATH", help="a .npy file, or a folder of images or arrays"
        )
        trials.add_argument("--trial-behavior", metavar="FILE", help="a .npy of (B, K), a column per behaviour channel")
        trials.add_argument("--trial-pupil-center", metavar="FILE", help="a .npy of (B, 2)")
        trials.add_argument("--limit", type=count, metavar="N", help="only the first N")


def _maps(subject: Subject, trials: Trials, n: int, work: Work) -> npt.NDArray[np.float32]:
    """(n, M, h, w)."""
    attend = getattr(subject.predictor, "attention", None)
    if attend is None:
        raise InvalidArgument(
            "this predictor has no attention", got=type(subject.predictor).__name__, expected="a method `attention`"
        )
    state: dict[str, Any] = {}
    with work.resume("attention", state, n, batch=SAVED_EVERY, counter=None) as loop:
        for piece in loop:
            parts = [state["maps"]] if state else []
            for start in range(piece.start, piece.stop, BATCH):
                images, behavior = trials.read(slice(start, min(start + BATCH, piece.stop)))
                arguments = subject.arguments(**behavior)
                answer: Attention = attend(subject.mouse.mouse_id, images, model=subject.mouse.model, **arguments)
                subject.note(answer)
                parts.append(answer.maps)
                loop.advance(len(images))
            state["maps"] = np.concatenate(parts)
    return state["maps"]


def center_of_mass(maps: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(..., h, w) -> (..., 2): x and y, from -1 at the left or upper border to 1 at the other."""
    h, w = maps.shape[-2:]
    total = maps.sum((-2, -1), dtype=np.float64)
    x = (maps.sum(-2, dtype=np.float64) @ _middles(w)) / total
    y = (maps.sum(-1, dtype=np.float64) @ _middles(h)) / total
    return np.stack([x, y], axis=-1)


def _middles(n: int) -> npt.NDArray[np.float64]:
    return (2 * np.arange(n) + 1) / n - 1


def correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Pearson's r and its two-sided p-value; NaN where one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) < 1e-9 * np.abs(a).max(initial=1e-30) or np.ptp(b) == 0:
        return float("nan"), float("nan")
    found = needed("scipy.stats").pearsonr(a, b)
    return float(found.statistic), float(found.pvalue)


def _numbers_or_names(trials: Trials, n: int) -> tuple[str, npt.NDArray[Any], dict[str, str]]:
    """The coordinate of the images."""
    if trials.pictures.names:
        return "image", np.array(trials.pictures.names[:n]), {"long_name": "file name"}
    return "image", np.arange(n), {"long_name": "number of the trial"}


def _shown_trials(n: int, pupil: npt.NDArray[np.float32] | None) -> npt.NDArray[np.int64]:
    """Trials for the figure, spaced evenly over gaze from left to right where it is known."""
    order = np.arange(n) if pupil is None else np.argsort(pupil[:n, 0], kind="stable")
    return order[np.unique(np.linspace(0, n - 1, min(SHOWN, n)).round().astype(int))]
