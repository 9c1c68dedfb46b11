"""Every kind of bundle answers in this process as over HTTP: equal bit for bit, labels and refusals included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.live_server import Server, serving
from support.reference_cases import CASES
from v1t_client import Client, V1TError
from v1t_client.insilico import EXPERIMENTS, open_predictor

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V1T_THREADS", "1")


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal bit for bit, except for the request ids, which are new for every request."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif is_dataclass(one):
        for field in fields(one):
            if field.name != "request_id":
                same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, (list, tuple, dict)):
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        assert len(one) == len(other), where
        for key, value in pairs:
            same(value, other[key], f"{where}[{key}]")
    else:
        assert one == other or (one != one and other != other), where


def outcome(ask: Callable[[], Any]) -> Any:
    """The answer, or the refusal in words."""
    try:
        return ask()
    except V1TError as error:
        return f"{type(error).__name__}: {error}"


def answers(twin: Client, mouse: str, rng: np.random.Generator) -> dict[str, Any]:
    """Everything that a twin can be asked about a mouse."""
    n, shape = 5, twin.mouse(mouse).image_shape
    ids = twin.neurons(mouse).neuron_ids
    image = rng.uniform(-1, 1, (n, *shape)).astype(np.float32)
    names = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
    given = {**{name: rng.normal(size=n) for name in names}, "pupil_center": rng.normal(size=(n, 2))}
    some = rng.permutation(ids)[:6]
    sums = EXPERIMENTS["rf"](mouse=mouse, images=64, neuron_ids=tuple(some.tolist()), **dict.fromkeys(names, 0.1))
    asked: dict[str, Callable[[], Any]] = {
        "predict": lambda: twin.predict(mouse, image, **given),
        "one": lambda: twin.predict(mouse, image[:1], **{k: v[:1] for k, v in given.items()}, spread=True, units="raw"),
        "some": lambda: twin.predict(mouse, image, neuron_ids=some, **given),
        "filled in": lambda: twin.predict(mouse, image, state="mean"),
        "several": lambda: twin.predict_mice("*", image[:2], **{k: v[:2] for k, v in given.items()}),
        "gradient": lambda: twin.gradient(mouse, image[:2], weights=np.ones(6), neuron_ids=some, state="mean"),
        "attention": lambda: twin.attention(mouse, image[:2], state="mean"),
        "another size": lambda: twin.predict(mouse, image[..., :-1], **given),
        "neurons": lambda: twin.neurons(mouse),
        "mouse": lambda: twin.mouse(mouse),
        "mice": twin.mice,
        "rf": lambda: {name: values.to_numpy() for name, values in sums.run(twin).dataset.data_vars.items()},
    }
    return {name: outcome(ask) for name, ask in asked.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_bundle_answers_as_over_http(
    case: str, reference_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle, seed = reference_bundle(case), np.random.SeedSequence().entropy
    with serving(bundle, tmp_path, V1T_THREADS="1") as server, Client(server.url) as http:
        http.wait_until_ready(90)
        expected = {m.mouse_id: answers(http, m.mouse_id, np.random.default_rng(seed)) for m in http.mice()}
    with open_predictor(bundle) as local:
        for mouse, of_mouse in expected.items():
            same(answers(local, mouse, np.random.default_rng(seed)), of_mouse, mouse)


def test_demo_answers_as_over_http(demo_server: Server) -> None:
    seed = np.random.SeedSequence().entropy
    with Client(demo_server.url) as http, open_predictor(ROOT / "exported_models" / "demo") as local:
        same(*(answers(twin, "SIM1", np.random.default_rng(seed)) for twin in (local, http)))
