"""Every kind of bundle answers in this process as over HTTP: equal bit for bit, labels and refusals included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.live_server import serving
from support.reference_cases import CASES
from v1t_client import Client, V1TError
from v1t_client.insilico import open_predictor
from v1t_client.insilico.experiments.receptive_field_stream import server_sums

pytestmark = pytest.mark.slow
NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")


@pytest.fixture(scope="module")
def over_http(reference_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of `bentoml serve`, with every kind of bundle and the demo."""
    bundles = tmp_path_factory.mktemp("bundles")
    for case in CASES:
        (bundles / case).symlink_to(reference_bundle(case))
    (bundles / "demo").symlink_to(ROOT / "exported_models" / "demo")
    with serving(bundles, tmp_path_factory.mktemp("home"), V1T_THREADS="1", V1T_MAX_LOADED="3") as server:
        server.wait_for("/readyz", 200)
        with Client(server.url) as client:
            yield client


def outcome(ask: Callable[[], Any]) -> Any:
    """The answer, or the refusal in words."""
    try:
        return ask()
    except V1TError as error:
        return f"{type(error).__name__}: {error}"


def answers(twin: Client, mouse: str, model: str, rng: np.random.Generator) -> dict[str, Any]:
    """Everything that a twin can be asked about a mouse."""
    n, shape = 5, twin.mouse(mouse, model=model).image_shape
    ids = twin.neurons(mouse, model=model).neuron_ids
    image = rng.uniform(-1, 1, (n, *shape)).astype(np.float32)
    given: dict[str, Any] = {name: rng.normal(size=n) for name in NAMES} | {"pupil_center": rng.normal(size=(n, 2))}
    one: dict[str, Any] = {name: values[:1] for name, values in given.items()}
    some = rng.permutation(ids)[:6]
    same_for_all = dict.fromkeys(NAMES, 0.1) | {"pupil_center": [0.1, 0.2]}
    noise = {"seed": 7, "n_images": 11, "grid": list(shape[1:]), "luminance": 0.5, "contrast": 0.5}
    about = {"mouse": mouse, "model": model, "neuron_ids": some.tolist()}
    asked: dict[str, Callable[[], Any]] = {
        "all": lambda: twin.predict(mouse, image, model=model, **given),
        "one": lambda: twin.predict(mouse, image[:1], model=model, spread=True, units="raw", **one),
        "some": lambda: twin.predict(mouse, image, model=model, neuron_ids=some, **given),
        "filled in": lambda: twin.predict(mouse, image, model=model, state="mean"),
        "several mice": lambda: twin.predict_mice("*", image[:1], model=model, **one),
        "gradient": lambda: twin.gradient(mouse, image[:1], weights=np.ones(6), neuron_ids=some, model=model, **one),
        "attention": lambda: twin.attention(mouse, image[:1], model=model, **one),
        "another size": lambda: twin.predict(mouse, image[..., :-1], model=model, **given),
        "neurons": lambda: twin.neurons(mouse, model=model),
        "mouse": lambda: twin.mouse(mouse, model=model),
        "receptive fields": lambda: server_sums(twin, {**about, **noise, **same_for_all}),
    }
    return {name: outcome(ask) for name, ask in asked.items()}


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal bit for bit, except for the request ids, which are new for every request."""
    assert type(one) is type(other), f"{where}: {one} {other}"
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif is_dataclass(one):
        for field in fields(one):
            if field.name != "request_id":
                assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, (list, tuple, dict)):
        assert len(one) == len(other), where
        for key, value in one.items() if isinstance(one, dict) else enumerate(one):
            assert_same(value, other[key], f"{where}[{key}]")
    else:
        assert one == other, where


@pytest.mark.parametrize("case", [*CASES, "demo"])
def test_every_kind_of_bundle_answers_as_over_http(
    case: str, over_http: Client, reference_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("V1T_THREADS", "1")
    seed = np.random.SeedSequence().entropy
    with open_predictor(ROOT / "exported_models" / "demo" if case == "demo" else reference_bundle(case)) as local:
        mice = local.mice()
        for mouse in mice:
            here, there = (
                answers(twin, mouse.mouse_id, mouse.model, np.random.default_rng(seed)) for twin in (local, over_http)
            )
            assert not isinstance(here["all"], str), here["all"]
            assert_same(here, there, mouse.mouse_id)
    assert mice
