"""Behaviour: how responses change with pupil, running and gaze, over the range of the training trials.

modulation index = (r_high - r_low) / (r_high + r_low),  the mean responses at the highest and the lowest value
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import Channel
from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, words
from v1t_client._predictor import Predictor
from v1t_client._protocol.arguments import channel_arguments
from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.screen import Screen

if TYPE_CHECKING:
    import xarray

__all__ = ["Behavior", "pink_noise"]

Array = npt.NDArray[np.float64]
GAZE = ("pupil_center_x", "pupil_center_y")
PERCENTILES = ("5", "25", "50", "75", "95")
QUANTILES = dict(zip(PERCENTILES, (-1.645, -0.674, 0.0, 0.674, 1.645), strict=True))  # of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Behavior(Experiment):
    """Responses as a function of behaviour.

    Attributes:
        channels: which inputs to vary; None: all that the twin uses.
        values: values of an input instead of its training percentiles, such as "running_speed=0,5,20".
        grid: two channels that are varied together, such as ("pupil_dilation", "running_speed").
        images: natural images to average over, a folder or .npy file; None: `n_images` images of pink noise with the
            mean and contrast of the training images.
        n_images: most images to average over.
    """

    name: ClassVar[str] = "behavior"
    summary: ClassVar[str] = "measure how pupil, running and gaze modulate responses"
    examples: ClassVar[str] = """\
examples:
  v1t behavior A --output behavior-A               every input at its training percentiles
  v1t behavior A --channels running_speed --values running_speed=0,2,5,10,20,40 --output running-A
  v1t behavior A --grid pupil_dilation running_speed --images photographs/ --output grid-A
"""

    channels: tuple[str, ...] | None = None
    values: tuple[str, ...] = ()
    grid: tuple[str, str] | None = None
    images: str | None = None
    n_images: int = 32

    def __post_init__(self) -> None:
        varied = [value.partition("=")[0] for value in self.values]
        if len(set(varied)) < len(varied):
            raise InvalidArgument("the values of a channel are given twice", got=" ".join(self.values))
        if self.grid is not None and len(set(self.grid)) < 2:
            raise InvalidArgument("a grid needs two different channels", got=self.grid[0])
        if self.n_images < 1:
            raise InvalidArgument("n_images is too small", got=self.n_images, expected="1 or more")

    def subject(self, predictor: Predictor) -> Subject:
        subject = super().subject(predictor)
        known = {channel.name: channel.unit for channel in (*subject.mouse.behavior, *subject.mouse.pupil_center)}
        for name in (*(self.channels or ()), *(self.grid or ()), *(value.partition("=")[0] for value in self.values)):
            if name not in known:
                raise InvalidArgument(
                    f"mouse {self.mouse!r} has no such behaviour channel",
                    got=name,
                    expected=", ".join(f"{channel} [{unit}]" for channel, unit in known.items()),
                )
        return subject

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("behaviour")
        channels = "which of those that `v1t mouse` lists under behavior and pupil_center (all that the twin uses)"
        own.add_argument("--channels", nargs="+", type=words, metavar="NAME", help=channels)
        own.add_argument(
            "--values", nargs="+", default=(), metavar="NAME=V,V", help="values to use instead of percentiles"
        )
        own.add_argument("--grid", nargs=2, metavar="NAME", help="vary two channels together")
        own.add_argument("--images", metavar="FOLDER", help="natural images to average over (default: pink noise)")
        own.add_argument(
            "--n-images",
            type=count,
            default=cls.n_images,
            metavar="N",
            help="most images to average over (%(default)s)",
        )

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        images, described = self._images(subject)
        names = self.channels or _used(subject)
        if not names:
            raise InvalidArgument(f"the responses of mouse {self.mouse!r} do not depend on behaviour in this model")
        axes = {name: _axis(subject, name, self._given(name)) for name in dict.fromkeys((*names, *(self.grid or ())))}
        variables: dict[str, Any] = {}
        coords = {name: variable(axis, subject.mouse.channel(name).unit, dims=name) for name, axis in axes.items()}
        for name in names:
            states = [{name: value} for value in axes[name]]
            curve = _responses(subject, work, name, images, states)  # (n, values)
            total = curve[:, -1] + curve[:, 0]
            index = (curve[:, -1] - curve[:, 0]) / np.where(total > 0, total, np.inf)
            described = f"(r at {axes[name][-1]:.4g} - r at {axes[name][0]:.4g}) / their sum"
            variables[f"response_{name}"] = variable(curve, "std of responses", dims=("neuron", name))
            variables[f"modulation_{name}"] = variable(index, "1", described)
        if self.grid is not None:
            a, b = self.grid
            states = [{a: x, b: y} for x in axes[a] for y in axes[b]]
            grid = _responses(subject, work, "grid", images, states).reshape(len(subject), len(axes[a]), len(axes[b]))
            variables["response_grid"] = variable(grid, "std of responses", dims=("neuron", a, b))
        return subject.dataset(variables, coords).assign_attrs(n_images=len(images), images=described)

    def _given(self, name: str) -> str | None:
        return next((text for channel, _, text in (v.partition("=") for v in self.values) if channel == name), None)

    def _images(self, subject: Subject) -> tuple[npt.NDArray[np.float32], str]:
        """The images, and what they are."""
        if self.images is None:
            noise = pink_noise(subject.screen, self.n_images, np.random.default_rng(self.seed))
            return noise, counted(len(noise), "image") + " of pink noise"
        pictures = subject.pictures(self.images)
        chosen = np.linspace(0, len(pictures) - 1, min(self.n_images, len(pictures))).round().astype(int)
        names = pictures.names or [f"{Path(self.images).name}[{i}]" for i in range(len(pictures))]
        return pictures.read(chosen), ", ".join(names[i] for i in chosen)

    def draw(self, result: Result) -> dict[str, Any]:
        drawn = {"curves": _curves(result)}
        if self.grid is not None:
            drawn["grid"] = _grid(result, self.grid)
        return drawn

    def summarize(self, result: Result) -> str:
        lines = []
        for name in _measured(result):
            index = result.dataset[f"modulation_{name}"].values
            lines.append(
                f"{name}: modulation index median {np.median(index):+.3f}, {np.mean(index > 0):.0%} of neurons increase"
            )
        return "\n".join(lines)


def pink_noise(screen: Screen, n: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(n, H, W) noise whose amplitude falls as 1/f like that of natural images, with their mean and contrast."""
    _, H, W = screen.shape
    frequency = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, H, W))) / frequency, s=(H, W))
    noise /= noise.std((1, 2), keepdims=True)
    return (screen.luminance + screen.noise_std * noise).astype(np.float32)


def _used(subject: Subject) -> tuple[str, ...]:
    mouse = subject.mouse
    return tuple(
        channel.name for use in ("behavior", "pupil_center") if use in mouse.uses for channel in getattr(mouse, use)
    )


def _axis(subject: Subject, name: str, given: str | None) -> Array:
    """The values of a channel, increasing; a note says which are outside the training range."""
    channel = subject.mouse.channel(name)
    values = _percentiles(subject, channel) if given is None else _parsed(name, given)
    low, high = channel.min, channel.max
    if low is not None and high is not None:
        outside = [f"{value:.4g}" for value in values if not low <= value <= high]
        if outside:
            range_ = f"{low:.4g} to {high:.4g}"
            message = f"{name} at {', '.join(outside)} {channel.unit} is outside the training range, {range_}"
            subject.notes.append(Note("outside_recording", name, message))
    return values


def _parsed(name: str, given: str) -> Array:
    try:
        values = np.array([float(part) for part in given.split(",")])
    except ValueError:
        values = np.array([])
    if len(values) < 2 or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise InvalidArgument(
            f"the values of {name} are not a curve", got=given, expected="two or more increasing numbers"
        )
    return values


def _percentiles(subject: Subject, channel: Channel) -> Array:
    known = [channel.percentiles.get(name) for name in PERCENTILES]
    if all(value is not None for value in known):
        values = np.array(known, dtype=np.float64)
    elif channel.mean is not None and channel.std is not None:
        values = channel.mean + channel.std * np.array(list(QUANTILES.values()))
        subject.assumed.append(
            f"the percentiles of {channel.name} are not known: those of a normal distribution were used"
        )
    elif subject.mouse.standardized_inputs:
        values = np.array(list(QUANTILES.values())) + (0.0 if channel.name in GAZE else 1.645)
        subject.assumed.append(
            f"{channel.name} is standardised and its distribution is not known: a normal distribution was used"
        )
    else:
        raise InvalidArgument(
            f"the distribution of {channel.name} is not known", hint=f"Give --values {channel.name}=0,1,2."
        )
    return np.unique(values)


def _responses(
    subject: Subject, work: Work, name: str, images: npt.NDArray[np.float32], states: list[dict[str, float]]
) -> Array:
    """(n, states), the mean response over the images in each state."""
    state = {"kept": np.full((len(states), len(subject)), np.nan)}
    with work.resume(name, state, len(states)) as loop:
        for (i,) in loop:
            responses = subject.respond(images, **_behavior(subject, states[i]))
            state["kept"][i] = responses.mean(0, dtype=np.float64)
    return state["kept"].T


def _behavior(subject: Subject, state: dict[str, float]) -> dict[str, Any]:
    """Arguments of `predict`. Where one coordinate of the gaze varies, the other stays as it is for the subject."""
    arguments = channel_arguments({name: float(value) for name, value in state.items() if name not in GAZE})
    if set(state) & set(GAZE):
        held = subject.held
        arguments["pupil_center"] = [float(state.get(name, held.get(name, 0.0))) for name in GAZE]
    return arguments


def _measured(result: Result) -> list[str]:
    return [str(name).removeprefix("modulation_") for name in result.dataset if str(name).startswith("modulation_")]


def _curves(result: Result) -> Any:
    """Top: responses divided by each neuron's mean, quartiles over neurons. Bottom: modulation indices."""
    data, names = result.dataset, _measured(result)
    made = figures.figure(figures.COLUMN if len(names) < 3 else figures.PAGE, 3.0)
    # Each row on one scale, so that the effects of the channels can be compared by eye.
    axes = made.subplots(2, len(names), squeeze=False, sharey="row")
    largest = max(float(np.abs(data[f"modulation_{name}"]).max()) for name in names)
    bins = np.linspace(-max(largest, 1e-3), max(largest, 1e-3), 26)  # 0 is in the middle of a bin
    for column, name in enumerate(names):
        curve = data[f"response_{name}"].values
        relative = curve / np.maximum(curve.mean(1, keepdims=True), 1e-9)
        low, middle, high = np.percentile(relative, [25, 50, 75], axis=0)
        above, below = axes[:, column]
        quarter = "middle half of the neurons"
        above.fill_between(data[name], low, high, color=figures.GREY, alpha=0.4, linewidth=0, label=quarter)
        above.plot(data[name], middle, color=figures.INK, marker=".", label="median neuron")
        above.set_xlabel(f"{name.replace('_', ' ')}\n[{data[name].attrs['units']}]", fontsize=6)
        median = float(data[f"modulation_{name}"].median())
        figures.histogram(below, data[f"modulation_{name}"], bins)
        below.axvline(0, color=figures.INK, linewidth=0.6)
        below.axvline(median, color=figures.ACCENT, label="median")
        below.set_title(f"median {median:+.3f}", fontsize=6)
        below.set_xlabel("modulation index", fontsize=6)
        below.set_ylabel("")
    axes[0, 0].set_ylabel("response / mean")
    figures.whole_counts(axes[1, 0])
    for axis in axes[:, 0]:
        axis.legend(fontsize=5, loc="upper left")
        axis.set_ylim(top=axis.get_ylim()[1] + 0.25 * np.ptp(axis.get_ylim()))  # the legend stands above
    n = f"{data.sizes['neuron']:,} neurons over {data.attrs['n_images']} images"
    about = "each channel over its recorded range while the others are held, relative to each neuron's mean"
    figures.heading(made, f"{n}: {about}")
    return made


def _grid(result: Result, grid: tuple[str, str]) -> Any:
    data = result.dataset
    values = data["response_grid"].values
    relative = np.median(values / np.maximum(values.mean((1, 2), keepdims=True), 1e-9), axis=0)  # (a, b)
    made = figures.figure(figures.COLUMN, 2.4)
    axis = made.add_subplot()
    image = axis.imshow(relative, origin="lower", aspect="auto")
    axis.set_yticks(range(len(data[grid[0]])), [f"{value:.3g}" for value in data[grid[0]].values])
    axis.set_xticks(range(len(data[grid[1]])), [f"{value:.3g}" for value in data[grid[1]].values])
    axis.set_ylabel(f"{grid[0].replace('_', ' ')} [{data[grid[0]].attrs['units']}]")
    axis.set_xlabel(f"{grid[1].replace('_', ' ')} [{data[grid[1]].attrs['units']}]")
    made.colorbar(image).set_label("response / neuron's mean, median neuron")
    return made
