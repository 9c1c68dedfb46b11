"""What a teacher is asked about one mouse: a list of segments, each some images of one kind with behaviour and gaze.

Segments are cut into chunks, and each chunk is drawn from its own random numbers. So a killed run draws and asks only
what is missing, and ends with the same questions and answers as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from training.data.mouse import Mouse
from training.data.recordings import Recording
from training.distillation.states import draw_states, median_state, running_states
from training.distillation.stimuli import crops, draw, gabors, gratings
from training.errors import ConfigError

__all__ = ["CHUNK", "HELD_OUT", "MAP_SHAPE", "TUNING_SHAPE", "Images", "Questions", "Segment", "ask_about", "map_grid"]

Images = Literal["both", "own", "generated"]
CHUNK = 128
# Shares of the generated images; without a recording there are no crops, and the others take their share.
SHARES = {"leaves": 0.35, "crops": 0.2, "noise": 0.15, "gratings": 0.15, "gabors": 0.15}
OWN_AGAIN = 2  # the recording's images are also shown this often in other states
VALIDATION = 256  # generated images to validate on, where there is no recording
# Kinds of held-out images: their number, in the test tier, which nothing is trained or chosen by.
HELD_OUT = {"natural": 512, "noise": 512, "gratings": 512}
DIRECTIONS, CYCLES, PHASES = np.arange(16) * np.pi / 16, np.array([1.5, 2.5, 3.5, 5.0, 7.0]), np.arange(4) * np.pi / 2
TUNING_CONTRAST = 0.8
MAP_ROWS, MAP_DIRECTIONS, MAP_PHASES = 12, np.arange(4) * np.pi / 4, np.array([0, np.pi / 2])
MAP_CYCLES, MAP_SIGMA = 3.5, 0.07  # per height, and of the height
TUNING_SHAPE = (len(DIRECTIONS), len(CYCLES), len(PHASES))
MAP_SHAPE = (len(MAP_DIRECTIONS), len(MAP_PHASES))  # at each place
RUNNING_IMAGES = 128  # natural images, each at rest and while running


@dataclass(frozen=True)
class Segment:
    """`n` questions of one kind in one tier."""

    kind: str
    tier: Literal["train", "validation", "test"]
    n: int


def map_grid(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y [px] of the places at which receptive fields are mapped."""
    H, W = shape[1:]
    step = H / MAP_ROWS
    return np.arange(step / 2 - 0.5, W - 0.5, step), np.arange(step / 2 - 0.5, H - 0.5, step)


def ask_about(mouse: Mouse, recording: Recording | None, images: Images, generated: int) -> tuple[Segment, ...]:
    """The segments of a mouse's questions.

    Raises:
        ConfigError: the recording's images are asked for, and there is no recording; or nothing would be asked.
    """
    if images != "generated" and recording is None:
        raise ConfigError(
            f"mouse {mouse.mouse_id!r} has no recording whose images could be shown to the teacher",
            got=f"--images {images}",
            hint="Give --recordings, or --images generated.",
        )
    if images != "own" and generated < 1:
        raise ConfigError("no images would be generated", got=f"--generated {generated}", expected="1 or more")
    segments: list[Segment] = []
    if images != "generated" and recording is not None:
        n = len(recording.tier("train"))
        segments += [Segment("recorded", "train", n), Segment("recorded again", "train", OWN_AGAIN * n)]
    if images != "own":
        shares = {kind: share for kind, share in SHARES.items() if kind != "crops" or recording is not None}
        ends = np.rint(generated * np.cumsum(list(shares.values())) / sum(shares.values())).astype(int)
        numbers = np.diff(ends, prepend=0).tolist()
        segments += [Segment(kind, "train", n) for kind, n in zip(shares, numbers, strict=True) if n]
    known = recording is not None and len(recording.tier("validation")) > 0
    n_validation = len(recording.tier("validation")) if recording is not None and known else VALIDATION
    segments.append(Segment("recorded" if known else "leaves", "validation", n_validation))
    x, y = map_grid(mouse.image_shape)
    segments += [Segment(kind, "test", n) for kind, n in HELD_OUT.items()]
    segments += [
        Segment("map", "test", len(x) * len(y) * math.prod(MAP_SHAPE)),
        Segment("tuning", "test", math.prod(TUNING_SHAPE)),
        Segment("running", "test", 2 * RUNNING_IMAGES),
    ]
    return tuple(segments)


class Questions:
    """The questions about one mouse, drawn chunk by chunk in the units that the twin takes.

    Attributes:
        dtype: of the stored images: bytes where images are grey levels, otherwise float16. What is stored is asked.
    """

    def __init__(self, mouse: Mouse, recording: Recording | None, segments: Sequence[Segment], seed: int) -> None:
        self.mouse, self.recording, self.segments, self.seed = mouse, recording, tuple(segments), seed
        self.starts = np.cumsum([0, *(segment.n for segment in segments)])
        levels = mouse.images
        in_bytes = levels is not None and levels.min.min() >= 0 and 100 < levels.max.max() <= 255
        self.dtype = np.dtype(np.uint8 if in_bytes else np.float16)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def describe(self) -> dict[str, Any]:
        """What makes two sets of questions the same."""
        return {
            "seed": self.seed,
            "segments": [asdict(segment) for segment in self.segments],
            "recording": None if self.recording is None else self.recording.data_hash,
        }

    def column(self, name: Literal["kind", "tier"]) -> np.ndarray:
        """(T,) words: the kind or the tier of every question."""
        return np.repeat([getattr(segment, name) for segment in self.segments], [s.n for s in self.segments])

    def chunk(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Questions from `start`, at most `CHUNK`, of one segment: images (n, C, H, W), behaviour, pupil centre."""
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        segment, first = self.segments[i], start - int(self.starts[i])
        n = min(CHUNK, segment.n - first)
        tier = ("train", "validation", "test").index(segment.tier)
        rng = np.random.default_rng([self.seed, *self.mouse.mouse_id.encode(), tier, *segment.kind.encode(), first])
        images, behavior, pupil_center = self._draw(segment, np.arange(first, first + n), rng)
        if self.dtype == np.uint8:
            images = np.clip(np.rint(images), 0, 255)
        return images.astype(self.dtype), behavior, pupil_center

    def _draw(
        self, segment: Segment, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, shape = len(rows), self.mouse.image_shape
        if segment.kind == "recorded":
            return self._recorded(segment.tier, rows)
        if segment.kind == "natural":
            return self._natural(rows, rng)
        if segment.kind == "running":
            behavior, pupil_center = running_states(self.mouse)
            images = self._natural(np.unique(rows // 2), rng)[0].repeat(2, axis=0)  # chunks start at rest
            return images, behavior[rows % 2], pupil_center[rows % 2]
        if segment.kind in ("map", "tuning"):
            behavior, pupil_center = (np.tile(part, (n, 1)) for part in median_state(self.mouse))
            return self._in_units(self._probes(segment.kind, rows)), behavior, pupil_center
        behavior, pupil_center = draw_states(self.mouse, self.recording, n, rng)
        if segment.kind == "recorded again":
            assert self.recording is not None
            images = self.recording.batch(self.recording.tier("train").indices[rows % self._n_train]).image
        elif segment.kind == "crops":
            assert self.recording is not None
            own = self.recording.batch(rng.choice(self.recording.tier("train").indices, n)).image
            images = self._in_units(crops(self._standardized(own), rng))
        else:
            images = self._in_units(draw(segment.kind, n, shape, rng))
        return images, behavior, pupil_center

    @property
    def _n_train(self) -> int:
        assert self.recording is not None
        return len(self.recording.tier("train"))

    def _recorded(self, tier: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.recording is not None
        batch = self.recording.batch(self.recording.tier(tier).indices[rows])
        return batch.image, batch.behavior, batch.pupil_center

    def _natural(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Test trials, or without a recording dead leaves: natural images that nothing was trained on."""
        if self.recording is not None and len(self.recording.tier("test")):
            trials = np.random.default_rng(self.seed).permutation(len(self.recording.tier("test")))
            return self._recorded("test", trials[rows % len(trials)])
        behavior, pupil_center = draw_states(self.mouse, self.recording, len(rows), rng)
        return self._in_units(draw("leaves", len(rows), self.mouse.image_shape, rng)), behavior, pupil_center

    def _probes(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Gratings over the whole image, or small Gabors at one place after another."""
        shape, H = self.mouse.image_shape, self.mouse.image_shape[1]
        if kind == "tuning":
            d, c, p = np.unravel_index(rows, TUNING_SHAPE)
            contrast = np.full(len(rows), TUNING_CONTRAST)
            return gratings(shape, direction=DIRECTIONS[d], cycles=CYCLES[c], phase=PHASES[p], contrast=contrast)
        x, y = map_grid(shape)
        i, j, d, p = np.unravel_index(rows, (len(y), len(x), *MAP_SHAPE))
        return gabors(
            shape,
            direction=MAP_DIRECTIONS[d],
            cycles=np.full(len(rows), MAP_CYCLES),
            phase=MAP_PHASES[p],
            contrast=np.ones(len(rows)),
            center=np.stack([x[j], y[i]], axis=1),
            sigma=np.full(len(rows), MAP_SIGMA * H),
        )

    def _standardized(self, images: np.ndarray) -> np.ndarray:
        levels = self.mouse.images
        assert levels is not None
        return (images - levels.mean[:, None, None]) / levels.std[:, None, None]

    def _in_units(self, standardized: np.ndarray) -> np.ndarray:
        """In the recording's own units, within the range of its images."""
        levels = self.mouse.images
        if levels is None:
            return standardized
        images = levels.mean[:, None, None] + levels.std[:, None, None] * standardized
        return np.clip(images, levels.min[:, None, None], levels.max[:, None, None])
