"""Screening: the natural images with the strongest and weakest responses of each neuron, in bounded memory."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._options import count
from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.framework.top_images import TopImages
from v1t_client.insilico.stimuli.pictures import Pictures

if TYPE_CHECKING:
    import xarray

__all__ = ["Screening"]

SAVED_EVERY = 32  # batches
SHOWN, IMAGES_SHOWN = 8, 5


@dataclass(frozen=True, kw_only=True)
class Screening(Experiment):
    """Natural images ranked by the twin's responses.

    Attributes:
        images: a folder of PNG, JPEG and .npy files, or one .npy (N, H, W) or (N, C, H, W), of the mouse's image size.
        top: how many of the best and of the worst images to keep.
    """

    name: ClassVar[str] = "screen"
    summary: ClassVar[str] = "find the natural images with the strongest and weakest response of each neuron"
    examples: ClassVar[str] = """\
examples:
  v1t screen A --images photographs/ --output screen-A
  v1t screen A --images stack.npy --best 100 --top 20 --output screen-A
"""

    images: str
    top: int = 10

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InvalidArgument("top is too small", got=self.top, expected="1 or more")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("images")
        own.add_argument("--images", required=True, metavar="FOLDER", help="PNG, JPEG and .npy files, or one .npy")
        own.add_argument(
            "--top", type=count, default=cls.top, metavar="N", help="best and worst images to keep (%(default)s)"
        )

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        pictures = subject.pictures(self.images)
        n, total, top = len(subject), len(pictures), min(self.top, len(pictures))
        names = pictures.names
        listed = hashlib.sha256("\n".join(names).encode()).hexdigest() if names else str(total)
        best, worst = TopImages.empty(n, top), TopImages.empty(n, top)
        state: dict[str, Any] = {
            "listed": listed, "sums": np.zeros(n), "squares": np.zeros(n),
            "best": best.responses, "best_index": best.index, "worst": worst.responses, "worst_index": worst.index,
        }  # fmt: skip
        with work.resume("screen", state, total, batch=subject.batch, every=SAVED_EVERY, label="images") as loop:
            if str(state["listed"]) != listed:
                raise InvalidArgument(
                    "the images have changed since this run began", got=self.images, hint="--force starts again."
                )
            best, worst = (TopImages(state[name], state[f"{name}_index"]) for name in ("best", "worst"))
            for piece in loop:
                responses = subject.respond(pictures.read(piece))  # (B, n)
                best.add(responses, piece.start)
                worst.add(-responses, piece.start)
                state["sums"] += responses.sum(0, dtype=np.float64)
                state["squares"] += np.square(responses, dtype=np.float64).sum(0)
        sums, squares = state["sums"], state["squares"]
        mean = sums / total
        ranked = ("neuron", "rank")
        variables: dict[str, Any] = {
            "best_image": variable(best.index, "1", "number of the image, from 0", dims=ranked),
            "best_response": variable(best.responses, "std of responses", dims=ranked),
            "worst_image": variable(worst.index, "1", "number of the image, from 0", dims=ranked),
            "worst_response": variable(-worst.responses, "std of responses", dims=ranked),
            "top_image": variable(best.index[:, 0], "1"),
            "top_response": variable(best.responses[:, 0], "std of responses"),
            "mean_response": variable(mean, "std of responses"),
            "std_response": variable(np.sqrt(np.maximum(squares / total - mean**2, 0)), "std of responses"),
        }
        coords = {"rank": variable(np.arange(1, top + 1), "1", dims="rank")}
        if names:
            files = np.array(names)
            variables["top_file"] = variable(files[best.index[:, 0]], "", "file name of the best image")
            coords["image"] = ("image", files, {"long_name": "file name of each image; best_image counts these"})
        return subject.dataset(variables, coords).assign_attrs(n_images=total)

    def draw(self, result: Result) -> dict[str, Any]:
        return {"images": _figure(result, self.images)}

    def summarize(self, result: Result) -> str:
        data = result.dataset
        lift = data["top_response"] / data["mean_response"]
        return (
            f"{counted(data.attrs['n_images'], 'image')}; the best one drives its neuron {float(lift.median()):.1f} "
            "times as much as the average one (median)"
        )


def _figure(result: Result, images: str) -> Any:
    """The best and worst images of the neurons whose best image stands out most."""
    data = result.dataset
    out = (data["top_response"] - data["mean_response"]) / np.maximum(data["std_response"], 1e-9)
    rows = np.argsort(-out.values, kind="stable")[:SHOWN]
    channels, height, width = result.receipt.screen["image_shape"]
    pictures = Pictures.open(Path(images), (channels, height, width))
    files = result.dataset["image"].values if "image" in result.dataset.coords else None
    shown = min(IMAGES_SHOWN, data.sizes["rank"])
    across = figures.PAGE / max(2 * shown, 4)
    made, axes = figures.axes_grid(
        len(rows) * 2 * shown, columns=2 * shown, height=across * height / width + 0.22, width=across * 2 * shown
    )
    for i, row in enumerate(rows):
        one = data.isel(neuron=row)
        numbers = [*one["best_image"].values[:shown], *one["worst_image"].values[:shown]]
        responses = [*one["best_response"].values[:shown], *one["worst_response"].values[:shown]]
        for j, (image, response) in enumerate(zip(pictures.read(np.array(numbers)), responses, strict=True)):
            axis = axes[i * 2 * shown + j]
            axis.imshow(image.mean(0), cmap="gray")
            figures.image_axes(axis)
            axis.spines[:].set(color=figures.ACCENT if j < shown else figures.BLUE, linewidth=0.8)
            name = f"{int(one['neuron'])}: " if j == 0 else ""
            file = "" if files is None else f" {_short(str(files[numbers[j]]))}"
            axis.set_title(f"{name}{response:.1f}{file}", fontsize=5)
    n = (
        f"{shown} strongest (orange) and {shown} weakest (blue) images"
        if shown > 1
        else "the strongest (orange) and weakest (blue) image"
    )
    figures.heading(
        made, f"{n} of a neuron in each row, with its response [std]; grey levels to each image's own range"
    )
    return made


def _short(name: str, longest: int = 14) -> str:
    return name if len(name) <= longest else f"...{name[3 - longest :]}"
