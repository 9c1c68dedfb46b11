"""Screening: the natural images that each neuron answers most and least, of a set of any size, in bounded memory."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._options import count
from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.stimuli.pictures import Pictures

if TYPE_CHECKING:
    import xarray

__all__ = ["Extremes", "Screening"]

SAVED_EVERY = 32  # batches
SHOWN, IMAGES_SHOWN = 8, 5


@dataclass(eq=False)
class Extremes:
    """The k highest responses of each neuron so far, and which images gave them; of the negated ones, the lowest.

    Attributes:
        responses: (n, k), highest first. index: (n, k), -1 where there were fewer images.
    """

    responses: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, n: int, k: int) -> Extremes:
        return cls(np.full((n, k), -np.inf, dtype=np.float32), np.full((n, k), -1, dtype=np.int64))

    def take(self, responses: npt.NDArray[np.float32], first: int) -> None:
        """Takes in the responses (B, n) to images first to first + B - 1; of equal ones the earlier image stays."""
        numbers = np.broadcast_to(np.arange(first, first + len(responses)), responses.T.shape)
        all_responses = np.concatenate([self.responses, responses.T], axis=1)
        all_numbers = np.concatenate([self.index, numbers], axis=1)
        order = np.argsort(-all_responses, axis=1, kind="stable")[:, : self.responses.shape[1]]
        self.responses = np.take_along_axis(all_responses, order, axis=1)
        self.index = np.take_along_axis(all_numbers, order, axis=1)


@dataclass(frozen=True, kw_only=True)
class Screening(Experiment):
    """Natural images screened by the twin.

    Attributes:
        images: a folder of PNG, JPEG and .npy files, or one .npy (N, H, W) or (N, C, H, W), of the mouse's own size.
        top: how many of the best and of the worst are kept.
    """

    name: ClassVar[str] = "screen"
    summary: ClassVar[str] = "find the natural images that each neuron answers most and least"
    examples: ClassVar[str] = """\
examples:
  v1t screen A --images photographs/ --output screen-A
  v1t screen A --images stack.npy --best 100 --top 20 --output screen-A
"""

    images: str
    top: int = 10

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InvalidArgument("top is no count", got=self.top, expected="1 or more")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("images")
        own.add_argument("--images", required=True, metavar="FOLDER", help="PNG, JPEG and .npy files, or one .npy")
        own.add_argument("--top", type=count, default=cls.top, metavar="N", help="best and worst kept (%(default)s)")

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        pictures = Pictures.open(Path(self.images), subject.mouse.image_shape)
        n, total, top = len(subject), len(pictures), min(self.top, len(pictures))
        best, worst, first = Extremes.empty(n, top), Extremes.empty(n, top), 0
        sums, squares, names = np.zeros(n), np.zeros(n), _names(pictures)
        listed = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else str(total)
        if (saved := work.load("screen")) is not None:
            if str(saved["listed"]) != listed:
                raise InvalidArgument(
                    "the images are others than when this run began", got=self.images, hint="--force begins anew."
                )
            first, sums, squares = int(saved["done"]), saved["sums"], saved["squares"]
            best, worst = Extremes(saved["best"], saved["best_index"]), Extremes(saved["worst"], saved["worst_index"])
        with work.progress(total, "images", done=first) as bar:
            for batch, start in enumerate(range(first, total, BATCH), start=1):
                numbers = np.arange(start, min(start + BATCH, total))
                responses = subject.respond(pictures.read(numbers))
                best.take(responses, start)
                worst.take(-responses, start)
                sums = sums + responses.sum(0, dtype=np.float64)
                squares = squares + np.square(responses, dtype=np.float64).sum(0)
                bar.update(len(numbers))
                if batch % SAVED_EVERY == 0:
                    work.save(
                        "screen", done=start + len(numbers), listed=listed, sums=sums, squares=squares,
                        best=best.responses, best_index=best.index, worst=worst.responses, worst_index=worst.index,
                    )  # fmt: skip
        unit, one, mean = {"units": "std of responses"}, {"units": "1"}, sums / total
        ranked = ("neuron", "rank")
        variables: dict[str, Any] = {
            "best_image": (ranked, best.index, {**one, "long_name": "number of the image, from 0"}),
            "best_response": (ranked, best.responses, unit),
            "worst_image": (ranked, worst.index, {**one, "long_name": "number of the image, from 0"}),
            "worst_response": (ranked, -worst.responses, unit),
            "top_image": ("neuron", best.index[:, 0], one),
            "top_response": ("neuron", best.responses[:, 0], unit),
            "mean_response": ("neuron", mean, unit),
            "std_response": ("neuron", np.sqrt(np.maximum(squares / total - mean**2, 0)), unit),
        }
        if names:
            variables["file"] = ("image", np.array(names), {"long_name": "file name of each image"})
        return subject.dataset(variables, {"rank": ("rank", np.arange(1, top + 1), one)}).assign_attrs(n_images=total)

    def figures(self, result: Result) -> dict[str, Any]:
        return {"images": _drawn(result, self.images)}

    def summarize(self, result: Result) -> str:
        data = result.dataset
        lift = data["top_response"] / data["mean_response"]
        return (
            f"{data.attrs['n_images']:,} images; the best one drives its neuron {float(lift.median()):.1f} times as "
            "much as the average one (median)"
        )


def _names(pictures: Pictures) -> list[str]:
    return [path.name for path in pictures.source] if isinstance(pictures.source, list) else []


def _drawn(result: Result, images: str) -> Any:
    """The best and the worst images of the neurons whose best stands out most."""
    data = result.dataset
    out = (data["top_response"] - data["mean_response"]) / np.maximum(data["std_response"], 1e-9)
    rows = np.argsort(-out.values, kind="stable")[:SHOWN]
    channels, height, width = result.receipt.screen["image_shape"]
    pictures = Pictures.open(Path(images), (channels, height, width))
    shown = min(IMAGES_SHOWN, data.sizes["rank"])
    made, axes = figures.axes_grid(len(rows) * 2 * shown, columns=2 * shown, size=(0.95, 0.95 * height / width + 0.2))
    for i, row in enumerate(rows):
        one = data.isel(neuron=row)
        numbers = [*one["best_image"].values[:shown], *one["worst_image"].values[:shown]]
        responses = [*one["best_response"].values[:shown], *one["worst_response"].values[:shown]]
        for j, (image, response) in enumerate(zip(pictures.read(np.array(numbers)), responses, strict=True)):
            axis = axes[i * 2 * shown + j]
            axis.imshow(image.mean(0), cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
            name = f"{int(one['neuron'])}: " if j == 0 else ""
            axis.set_title(f"{name}{response:.1f}", fontsize=5, pad=2)
    made.suptitle("best (left) and worst (right) images, with responses", fontsize=7)
    return made
