"""The simulated queue: closed forms, and what the command prints."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny_bundle import TinyTwin

from server.__main__ import main
from server.inference.sizing import Cost, capacity, most_requests, simulate


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batches_the_wait_is_that_of_an_m_d_1_queue(load: float) -> None:
    service = 0.02
    latency = simulate(Cost(service, 0, 0), load / service, images=1, max_batch=1, requests=50_000)
    expected = service + load * service / (2 * (1 - load))  # Pollaczek and Khinchine
    assert latency.mean() == pytest.approx(expected, rel=0.06)


def test_a_lone_request_takes_its_own_time() -> None:
    cost = Cost(0.003, 0.01, 0.001)
    for images, seconds in ((2, 0.001 + 0.003 + 2 * 0.01), (20, 0.001 + 3 * 0.003 + 20 * 0.01)):
        latency = simulate(cost, 0.1, images=images, max_batch=8, requests=1000)
        assert np.median(latency) == pytest.approx(seconds)


def test_below_the_capacity_latency_is_bounded_and_above_it_grows() -> None:
    cost = Cost(0.01, 0.002, 0.0001)
    most = capacity(cost, images=1, max_batch=8)
    assert most == pytest.approx(8 / (0.01 + 8 * 0.002))
    below, above = (simulate(cost, factor * most, images=1, max_batch=8) for factor in (0.9, 1.1))
    assert below[-1000:].mean() < 0.2
    assert above[-1000:].mean() > 5 * below[-1000:].mean()


def test_the_http_side_can_be_the_limit() -> None:
    assert capacity(Cost(0.0001, 0.0001, 0.001), images=1, max_batch=32) == pytest.approx(1000)


@pytest.mark.parametrize(("engine", "request_"), [(0.002, 0.001), (0.001, 0.003)])
def test_on_shared_cores_the_capacity_is_where_latency_begins_to_grow(engine: float, request_: float) -> None:
    cost = Cost(0, engine, request_, busy=2.0, cores=2)
    most = capacity(cost, images=1, max_batch=1)
    assert most < 1 / max(engine, request_)
    if engine > request_:  # the engine then keeps the cores busy all the time
        assert most == pytest.approx(cost.cores / (cost.busy * engine + request_))
    below, above = (simulate(cost, factor * most, images=1, max_batch=1) for factor in (0.95, 1.05))
    assert below[-1000:].mean() < 40 * (engine + request_)
    assert above[-1000:].mean() > 3 * below[-1000:].mean()


def test_enough_cores_for_both_are_as_good_as_any_number() -> None:
    few, many = (
        simulate(Cost(0.002, 0.001, 0.001, busy=1.5, cores=cores), 200, images=1, max_batch=8) for cores in (2.5, 64)
    )
    np.testing.assert_array_equal(few, many)


def test_the_most_requests_are_answered_in_time_and_more_are_not() -> None:
    cost = Cost(0.005, 0.004, 0.001)
    rate = most_requests(cost, images=1, max_batch=8, within=0.1)
    late = [np.percentile(simulate(cost, factor * rate, images=1, max_batch=8), 99) for factor in (0.99, 1.02)]
    assert late[0] <= 0.1 < late[1]
    assert most_requests(cost, images=1, max_batch=8, within=0.005) == 0


def test_the_command_prints_users_servers_and_price(twin: TinyTwin, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--users", "1000", "--each", "50", "--price", "2", "--request-ms", "1", "--provider", "cpu"]
    assert main(["size", str(twin.folder), *arguments]) == 0
    printed = capsys.readouterr().out
    servers = int(printed.split("servers   ")[1].split()[0])
    assert servers >= 50  # HTTP alone allows 1,000 requests a second
    assert "a million images at full load" in printed


@pytest.mark.parametrize("wrong", [["--users", "0"], ["--within", "nan"], ["--images", "-1"]])
def test_numbers_that_make_no_sense_are_refused(
    wrong: list[str], twin: TinyTwin, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["size", str(twin.folder), *wrong])
    assert "is not a number" in capsys.readouterr().err
