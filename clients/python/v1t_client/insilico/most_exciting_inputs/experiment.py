"""Most exciting inputs: the image with the strongest predicted response of each neuron, found by gradient ascent.

Walker et al. 2019; with least exciting inputs, diverse exciting inputs (Cadena et al. 2018, Ding et al. 2023), the most
exciting and most suppressing surround (Fu et al. 2024), and baselines for comparison: noise and natural images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, number
from v1t_client._protocol.arguments import State
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.most_exciting_inputs.ascent import Ascent, ascend, respond_each
from v1t_client.insilico.most_exciting_inputs.baselines import best_baselines, best_in_mask, noise
from v1t_client.insilico.most_exciting_inputs.canvas import ROWS, Array, Canvas
from v1t_client.insilico.most_exciting_inputs.diverse import diversify
from v1t_client.insilico.most_exciting_inputs.figures import figures_of
from v1t_client.insilico.most_exciting_inputs.masks import center_of, mask_of
from v1t_client.insilico.most_exciting_inputs.recipes import RECIPES, Constraint, Recipe, StepUnit, recipe
from v1t_client.insilico.stimuli.pictures import Pictures

if TYPE_CHECKING:
    import xarray

__all__ = ["MostExcitingInputs"]

MANY = 500  # neurons; searches for more must be asked for explicitly
RECIPE_FIELDS = tuple(field.name for field in fields(Recipe) if field.name != "source")


@dataclass(frozen=True, kw_only=True)
class MostExcitingInputs(Experiment):
    """Searches for the most exciting input of each neuron, and optionally for related images.

    Attributes:
        recipe: a name in `RECIPES`. `steps`, `first_step`, ... override fields of that `Recipe`. The receipt contains
            all of them, so that it keeps its meaning when a recipe changes.
        starts: noise images that each search starts from; the strongest result is kept.
        rows: rows of the grid that is searched; see `Canvas`.
        least: also search for the image with the weakest response.
        diverse: number of diverse exciting inputs, each with at least `share` of the best response.
        surround: also search for the surround of the image's mask that raises or lowers the response most, with at
            most the norm of the centre.
        natural: a folder of natural images or a .npy file of them, to compare with.
        noise: number of noise images to compare with.
        window: a search is flat when its response rose by at most 0.2 % of its rise within so many steps; then it is
            done, or leaves out half of the remaining steps if these are smaller (see `ascend`). `steps` is the bound.
            None: a tenth of `steps`, at least 5. 0: all steps.
    """

    name: ClassVar[str] = "mei"
    summary: ClassVar[str] = "find the image with the strongest predicted response of each neuron"
    examples: ClassVar[str] = """\
examples:
  v1t mei A --neuron-ids 12,99,7 --output meis
  v1t mei A --best 20 --recipe walker2019 --natural images/ --output meis
  v1t mei A --best 20 --least --diverse 8 --surround --output meis
  v1t mei A --best 4 --recipe quick --steps 30 --size 10 --output meis

The bundle must have been exported with gradients. The search runs on a grid of 36 rows, in units of the training
images' std. Behaviour and gaze are the training means unless they are given (--state mean): the literature's searches
hold them there (Walker et al. 2019), unlike the other experiments, whose default is --state median.
"""

    state: State = "mean"  # of the literature's recipes
    recipe: str = "blur-norm"
    starts: int = 3
    rows: int = ROWS
    steps: int | None = None
    first_step: float | None = None
    last_step: float | None = None
    step_unit: StepUnit | None = None
    first_blur: float | None = None
    last_blur: float | None = None
    constraint: Constraint | None = None
    size: float | None = None
    least: bool = False
    diverse: int = 0
    diverse_steps: int = 200
    share: float = 0.85
    surround: bool = False
    natural: str | None = None
    noise: int = 1000
    window: int | None = None

    def __post_init__(self) -> None:
        known = recipe(self.recipe)
        for name in RECIPE_FIELDS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(known, name))
        if self.window is None:
            object.__setattr__(self, "window", max(5, (self.steps or 0) // 10))
        for name, least in (("window", 0), ("starts", 1), ("rows", 1), ("steps", 1), ("diverse", 0), ("noise", 0)):
            if getattr(self, name) < least:
                raise InvalidArgument(f"{name} is too small", got=getattr(self, name), expected=f"at least {least}")
        if not (self.size or 0) > 0 or not 0 < self.share <= 1 or self.diverse == 1:
            raise InvalidArgument(
                "size, share or diverse is out of range",
                got=f"size {self.size}, share {self.share}, diverse {self.diverse}",
                expected="size above 0, share in (0, 1], diverse 0 or at least 2",
            )

    @property
    def _window(self) -> int:
        assert self.window is not None, "set by __post_init__"
        return self.window

    @property
    def search(self) -> Recipe:
        """The recipe with all overrides."""
        return Recipe(source=recipe(self.recipe).source, **{name: getattr(self, name) for name in RECIPE_FIELDS})

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        if self.neuron_ids is None and self.best is None and len(subject) > MANY:
            raise InvalidArgument(
                "a search for all neurons would take days",
                got=counted(len(subject), "neuron"),
                expected="a choice of neurons",
                hint=f"--neuron-ids 12,99,7 or --best 20; --best {len(subject)} searches for all.",
            )
        canvas = Canvas.of(subject.mouse, rows=self.rows)
        pictures = None if self.natural is None else subject.pictures(self.natural)
        start = np.stack([rng.standard_normal((self.starts, *canvas.grid)) for rng in self._rngs(subject, 0)])
        most = ascend(subject, canvas, self.search, work, name="most", start=start, window=self._window)
        best, responses = _best_start(most, up=True)  # (n, C, h, w), (n,)
        masks = np.stack([mask_of(image) for image in best])  # (n, h, w)
        centers = np.array([center_of(mask) for mask in masks]) * canvas.factor + (canvas.factor - 1) / 2  # (n, 2)
        image = ("neuron", "channel", "y", "x")
        variables: dict[str, Any] = {
            "mei": variable(canvas.show(best), "recording", "most exciting input", dims=image),
            "response": variable(responses, "response std", "response to the most exciting input"),
            "mask": variable(masks, "1", dims=("neuron", "grid_y", "grid_x")),
            "center_x": variable(centers[:, 0], "px", "of the mask, from the left"),
            "center_y": variable(centers[:, 1], "px", "of the mask, from the top"),
            "agreement": variable(_agreement(most.images, masks), "1", "between starts"),
            **_trace_variables("mei", most),
        }
        if self.least:
            least = ascend(subject, canvas, self.search, work, name="least", start=start, window=self._window, up=False)
            worst, lowest = _best_start(least, up=False)
            variables["lei"] = variable(canvas.show(worst), "recording", "least exciting input", dims=image)
            variables["least_response"] = variable(lowest, "response std")
            variables |= _trace_variables("lei", least)
        if self.diverse:
            variables |= self._diverse(subject, canvas, work, best, masks, responses)
        if self.surround:
            variables |= self._surround(subject, canvas, work, best, masks)
        variables |= self._baselines(subject, canvas, work, pictures, masks, responses)
        dataset = subject.dataset(variables)
        dataset.attrs |= {"recipe": self.recipe, "recipe_source": self.search.source, "grid_factor": canvas.factor}
        return dataset

    def _rngs(self, subject: Subject, purpose: int) -> list[np.random.Generator]:
        """One per neuron, so that its images do not depend on which other neurons are chosen."""
        return [np.random.default_rng([self.seed, purpose, int(neuron)]) for neuron in subject.neurons.neuron_ids]

    def _diverse(
        self, subject: Subject, canvas: Canvas, work: Work, best: Array, masks: Array, responses: np.ndarray
    ) -> dict[str, Any]:
        diverse = diversify(
            subject,
            canvas,
            self.search,
            work,
            best=best,
            masks=masks,
            responses=responses,
            share=self.share,
            n_images=self.diverse,
            n_steps=self.diverse_steps,
            rngs=self._rngs(subject, 1),
        )
        spent = np.sqrt(((best * masks[:, None]) ** 2).sum((1, 2, 3)))
        return {
            "diverse": variable(
                canvas.show(diverse.images),
                "recording",
                "diverse exciting inputs",
                dims=("neuron", "nth", "channel", "y", "x"),
            ),
            "diverse_response": variable(diverse.responses, "response std", dims=("neuron", "nth")),
            "diverse_distance": variable(
                diverse.distance / np.maximum(spent, 1e-9),
                "1",
                "mean distance of two images in the mask, over the image's norm there",
            ),
        }

    def _surround(self, subject: Subject, canvas: Canvas, work: Work, best: Array, masks: Array) -> dict[str, Any]:
        center = (best * masks[:, None])[:, None]  # (n, 1, C, h, w)
        outside = masks[:, None, None] < 0.5  # (n, 1, 1, h, w)
        norm = np.sqrt((center**2).sum((2, 3, 4), keepdims=True))

        def constrain(images: Array) -> Array:
            around = (images - center) * outside
            length = np.sqrt((around**2).sum((2, 3, 4), keepdims=True))
            return np.clip(center + around * np.minimum(1, norm / np.maximum(length, 1e-12)), canvas.low, canvas.high)

        # Weak noise, because the norm is only a bound here: pixels that do not affect the neuron stay weak.
        faint = np.stack([rng.standard_normal((self.starts, *canvas.grid)) for rng in self._rngs(subject, 2)])
        start = center + 0.1 * norm * faint / np.sqrt((faint**2).sum((2, 3, 4), keepdims=True))
        alone = respond_each(subject, canvas, center)[:, 0]
        variables: dict[str, Any] = {"center_response": variable(alone, "response std")}
        for kind, up in (("exciting", True), ("suppressing", False)):
            found = ascend(
                subject,
                canvas,
                self.search,
                work,
                name=f"{kind}_surround",
                start=start,
                window=self._window,
                up=up,
                constrain=constrain,
            )
            images, responses = _best_start(found, up=up)
            variables[f"{kind}_surround"] = variable(
                canvas.show(images),
                "recording",
                f"the image's center with the most {kind} surround",
                dims=("neuron", "channel", "y", "x"),
            )
            variables[f"{kind}_surround_response"] = variable(responses, "response std")
            variables[f"{kind}_surround_steps"] = variable(found.steps, "1", dims=("neuron", "start"))
        return variables

    def _baselines(
        self,
        subject: Subject,
        canvas: Canvas,
        work: Work,
        pictures: Pictures | None,
        masks: Array,
        responses: np.ndarray,
    ) -> dict[str, Any]:
        sets = {}
        if self.noise:
            sets["noise"] = (noise(canvas, self.seed), self.noise)
        if pictures is not None:
            sets["natural"] = (pictures.read, len(pictures))
        variables: dict[str, Any] = {}
        for name, (read, n_images) in sets.items():
            top = best_baselines(subject, work, read, n_images, name=name)
            at_norm = best_in_mask(subject, canvas, self.search, read, top, masks)
            variables[f"best_{name}_index"] = variable(top.index[:, 0], "1")
            if name == "natural" and pictures is not None and pictures.names:
                files = np.array(pictures.names)
                variables["best_natural_file"] = variable(files[top.index[:, 0]], "", "file name of that image")
            for key, best, how in (
                (name, top.responses[:, 0], "at its own contrast"),
                (f"{name}_in_mask", at_norm, "cut to the mask, at the search's norm"),
            ):
                what = f"response to the best of {n_images} {name} images, {how}"
                variables[f"best_{key}"] = variable(best, "response std", what)
                variables[f"beats_{key}"] = variable((responses > best).astype(np.int8), "1")
        return variables

    def draw(self, result: Result) -> dict[str, Any]:
        return figures_of(result)

    def summarize(self, result: Result) -> str:
        dataset = result.dataset
        response, start = dataset["response"].values, dataset["mei_trace"].values[:, :, 0].mean(1)
        lines = [
            f"{counted(len(response), 'neuron')}: most exciting input {np.median(response):.3g} response stds (median; "
            f"{np.median(start):.3g} to the noise it began as)",
        ]
        if "mei_steps" in dataset:
            steps, most = dataset["mei_steps"].values, dataset.sizes["step"] - 1
            early = f"{(steps < most).mean():.0%} of the searches were done before"
            lines.append(f"{np.median(steps):.0f} steps (median) of at most {most}; {early}")
        if dataset.sizes["start"] > 1:
            lines.append(f"{np.median(dataset['agreement']):.2f} correlation between starts (median)")
        for name, what in (
            ("noise_in_mask", "the best noise image in the mask at the same norm"),
            ("natural_in_mask", "the best natural image in the mask at the same norm"),
            ("noise", "the best noise image at its own contrast"),
            ("natural", "the best natural image at its own contrast"),
        ):
            if f"best_{name}" in dataset:
                rival, beats = dataset[f"best_{name}"].values, int(dataset[f"beats_{name}"].sum())
                lines.append(f"beats {what} ({np.median(rival):.3g}) for {beats} of {len(response)}")
        if "least_response" in dataset:
            lines.append(f"least exciting input {np.median(dataset['least_response']):.3g}")
        if "diverse_response" in dataset:
            kept = (dataset["diverse_response"] / dataset["response"]).min().item()
            lines.append(
                f"diverse inputs keep at least {kept:.0%} of the best response; their distance is "
                f"{np.median(dataset['diverse_distance']):.2f} of the image's norm"
            )
        if "center_response" in dataset:
            kinds = [np.median(dataset[f"{kind}_surround_response"]) for kind in ("exciting", "suppressing")]
            alone = np.median(dataset["center_response"])
            lines.append(f"center alone {alone:.3g}, exciting surround {kinds[0]:.3g}, suppressing {kinds[1]:.3g}")
        return "\n".join(lines)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        search = parser.add_argument_group("search (defaults are those of the recipe)")
        search.add_argument("--recipe", choices=list(RECIPES), default=cls.recipe, help="default: %(default)s")
        search.add_argument(
            "--starts",
            type=count,
            default=cls.starts,
            metavar="N",
            help="noise images that each search starts from (3)",
        )
        search.add_argument("--rows", type=count, default=cls.rows, metavar="N", help="rows of the searched grid (36)")
        search.add_argument("--steps", type=count, metavar="N", help="number of steps, at most")
        search.add_argument(
            "--window",
            type=count,
            metavar="N",
            help="a search ends, or continues with smaller steps, when its response rose by at most 0.2%% of its rise "
            "within N steps (a tenth of the steps; 0: take all steps)",
        )
        search.add_argument("--first-step", type=number, metavar="X", help="step size at the start")
        search.add_argument("--last-step", type=number, metavar="X", help="step size at the end")
        search.add_argument("--step-unit", choices=("gradient", "pixel"), help="unit of the step size")
        search.add_argument("--first-blur", type=number, metavar="PX", help="blur of the gradient at the start")
        search.add_argument("--last-blur", type=number, metavar="PX", help="blur of the gradient at the end")
        search.add_argument("--constraint", choices=("norm", "contrast"), help="what of the image is fixed")
        search.add_argument("--size", type=number, metavar="X", help="the norm or contrast, in training stds")
        more = parser.add_argument_group("related images and baselines")
        more.add_argument("--least", action="store_true", help="also least exciting inputs")
        more.add_argument("--diverse", type=count, default=0, metavar="K", help="K diverse exciting inputs per neuron")
        more.add_argument(
            "--diverse-steps", type=count, default=cls.diverse_steps, metavar="N", help="steps of their search (200)"
        )
        more.add_argument(
            "--share",
            type=number,
            default=cls.share,
            metavar="X",
            help="share of the best response that they keep (0.85)",
        )
        more.add_argument("--surround", action="store_true", help="also the most exciting and suppressing surround")
        more.add_argument(
            "--natural", metavar="PATH", help="compare with these natural images: a folder or a .npy file"
        )
        more.add_argument(
            "--noise", type=count, default=cls.noise, metavar="N", help="compare with N noise images (1000)"
        )


def _best_start(found: Ascent, *, up: bool) -> tuple[Array, np.ndarray]:
    """The image of the best start, (n, C, h, w), and its response, (n,)."""
    last = found.trace[:, :, -1]
    best = last.argmax(1) if up else last.argmin(1)
    each = np.arange(len(best))
    return found.images[each, best], last[each, best]


def _agreement(images: Array, masks: Array) -> Array:
    """(n,): the mean correlation between the images of two starts inside the mask; 1 if there is one start."""
    seen = images * masks[:, None, None]  # (n, S, C, h, w)
    flat = seen.reshape(*seen.shape[:2], -1)
    flat = flat / np.maximum(np.sqrt((flat**2).sum(-1, keepdims=True)), 1e-12)
    S = flat.shape[1]
    if S == 1:
        return np.ones(len(flat))
    products = flat @ flat.swapaxes(1, 2)  # (n, S, S)
    return (products.sum((1, 2)) - S) / (S * (S - 1))


def _trace_variables(name: str, found: Ascent) -> dict[str, Any]:
    """The images of all starts, and their responses during the search."""
    grid = ("neuron", "start", "channel", "grid_y", "grid_x")
    return {
        f"{name}_starts": variable(
            found.images.astype(np.float32), "training std", "from each start, on the grid", dims=grid
        ),
        f"{name}_trace": variable(found.trace, "response std", dims=("neuron", "start", "step")),
        f"{name}_steps": variable(found.steps, "1", "steps until the search was done", dims=("neuron", "start")),
    }
