"""What agreement measures, against neurons whose receptive field and orientation are known."""

from __future__ import annotations

import numpy as np

from training.data.mouse import Mouse
from training.distillation.agreement import best_frequency, centers, orientations
from training.distillation.questions import Questions, Segment, ask_about
from training.distillation.stimuli import GENERATED, draw

SHAPE = (1, 36, 64)


def probes(kind: str) -> np.ndarray:
    """(n, H, W) the images of one kind, standardised."""
    mouse = Mouse.without_recording("A", SHAPE, 3)
    segments = [s for s in ask_about(mouse, None, "generated", 10) if s.kind == kind and s.tier == "test"]
    asked = Questions(mouse, None, segments, seed=0)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < len(asked):
        parts.append(asked.chunk(sum(map(len, parts)))[0].astype(np.float64)[:, 0])
    return np.concatenate(parts)


def gabor(x: float, y: float, degrees: float, phase: float) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(SHAPE[2]) - x, np.arange(SHAPE[1]) - y)
    along = columns * np.cos(np.deg2rad(degrees)) + rows * np.sin(np.deg2rad(degrees))
    return np.exp(-(columns**2 + rows**2) / (2 * 2.7**2)) * np.cos(2 * np.pi * 0.1 * along + phase)


def test_centres_and_orientations_of_gabor_neurons_are_found() -> None:
    truth = [(20.3, 14.2, 30.0), (41.0, 20.6, 117.0), (30.5, 9.0, 171.0)]
    pairs = [[gabor(*one, phase) for phase in (0.4, 0.4 + np.pi / 2)] for one in truth]

    def respond(images: np.ndarray) -> np.ndarray:
        """A simple cell, two complex cells."""
        waves = np.array([[np.tensordot(images, wave, 2) for wave in pair] for pair in pairs])  # (N, 2, T)
        return np.stack([np.maximum(waves[0, 0], 0), np.hypot(*waves[1]), np.hypot(*waves[2])], axis=1)

    found = centers(respond(probes("map")), SHAPE)
    np.testing.assert_allclose(found, [one[:2] for one in truth], atol=0.6)
    tuning = respond(probes("tuning"))
    degrees, selectivity = orientations(tuning, best_frequency(tuning))
    difference = (degrees - [one[2] for one in truth] + 90) % 180 - 90
    np.testing.assert_allclose(difference, 0, atol=2)
    assert (selectivity > 0.3).all()


def test_every_kind_of_image_is_standardised_and_differs_from_image_to_image() -> None:
    for kind in GENERATED:
        images = draw(kind, 64, (2, 36, 64), np.random.default_rng(0))
        assert images.shape == (64, 2, 36, 64)
        assert abs(images.mean()) < 0.3, kind
        assert 0.3 < images.std() < 1.6, kind
        assert len({image.tobytes() for image in images}) == 64


def test_segments_are_held_out_by_tier() -> None:
    mouse = Mouse.without_recording("A", SHAPE, 3)
    segments = ask_about(mouse, None, "generated", 1000)
    trained = {segment.kind for segment in segments if segment.tier == "train"}
    assert trained == {"leaves", "noise", "gratings", "gabors"}
    assert sum(segment.n for segment in segments if segment.tier == "train") == 1000
    assert Segment("leaves", "validation", 256) in segments
