"""Short versions of `make load`, `make soak`, `make fuzz` and `make attack`, and tests of how they judge replies."""

from __future__ import annotations

import numpy as np
import pytest
from reliability import attack, drain, fuzz, kill, load, overload, questions, replicas, soak, swap
from reliability.questions import Answer
from reliability.served_bundles import DEMO

# aiohttp warns about large bodies of tritonclient
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.mark.slow
def test_every_reply_under_load_answers_its_own_request() -> None:
    assert load.run(seconds=4).problems == []


@pytest.mark.slow
def test_under_ten_times_its_capacity_requests_are_answered_or_refused_with_retry_after() -> None:
    assert overload.run(seconds=4, in_time=False).problems == []


@pytest.mark.slow
def test_clients_with_retries_see_no_error_when_the_worker_is_killed() -> None:
    assert kill.run(kills=1).problems == []


@pytest.mark.slow
def test_requests_accepted_before_sigterm_are_answered() -> None:
    assert drain.run(seconds=2).problems == []


@pytest.mark.slow
def test_every_reply_is_that_of_the_bundle_it_names_while_bundles_are_swapped() -> None:
    assert swap.run(swaps=5).problems == []


@pytest.mark.slow
def test_clients_see_nothing_when_replicas_are_killed_drained_hung_and_upgraded() -> None:
    assert replicas.run(rounds=1).problems == []


@pytest.mark.slow
def test_good_requests_are_answered_during_bad_ones_disconnects_and_reloads() -> None:
    assert soak.run(seconds=5).problems == []


@pytest.mark.slow
def test_no_broken_request_breaks_the_server() -> None:
    assert fuzz.run(cases=250).problems == []


@pytest.mark.slow
def test_no_attack_makes_the_server_grow_hang_or_fail() -> None:
    # Statuses, memory and honest answers; how fast /livez is depends on the machine's other work.
    problems = attack.run(seconds=3, only=("header", "JSON of", "PNGs", "idle", "elsewhere", "files of keys")).problems
    assert [problem for problem in problems if "/livez" not in problem] == []


def test_the_slope_of_memory_is_estimated_with_its_confidence_interval() -> None:
    rng = np.random.default_rng(0)
    seconds = np.linspace(0, 1800, 900)
    noise = rng.normal(0, 3, 900)
    per_hour, margin = soak.slope([*zip(seconds, 200 + 40 * seconds / 3600 + noise, strict=True)])
    assert abs(per_hour - 40) < margin < 10
    per_hour, margin = soak.slope([*zip(seconds, 200 + noise, strict=True)])
    assert abs(per_hour) < margin


def test_another_question_s_answer_and_a_mixture_of_two_are_wrong() -> None:
    asked = questions.draw_questions(
        questions.load([DEMO]), np.random.default_rng(0), sizes=(2, 2), kinds=("predict",), subsets=False
    )
    assert questions.closest(asked) > 1000 * questions.TOLERANCE
    mine, other = (next(iter(question.answers.values())) for question in asked[:2])
    assert mine.differs(mine.arrays) is None
    assert "off by" in str(mine.differs(other.arrays))
    half = np.concatenate([mine.arrays[0][:, :1], other.arrays[0][:, 1:]], axis=1)
    assert "off by" in str(mine.differs([half]))
    assert "shape" in str(mine.differs([mine.arrays[0][:, :1]]))
    assert "nan" in str(Answer((np.zeros(1),)).differs([np.full(1, np.nan)]))
