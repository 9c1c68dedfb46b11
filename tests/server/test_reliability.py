"""Short versions of `make load`, `make soak` and `make fuzz`, and the judges that they rely on."""

from __future__ import annotations

import numpy as np
import pytest
from reliability import drain, fuzz, kill, load, overload, questions, soak, swap
from reliability.place import DEMO
from reliability.questions import Answer

# aiohttp's, of what tritonclient does
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@pytest.mark.slow
def test_every_reply_under_load_is_the_asker_s_own() -> None:
    assert load.run(seconds=4).problems == []


@pytest.mark.slow
def test_ten_times_its_capacity_is_answered_or_told_when_to_come_back() -> None:
    assert overload.run(seconds=4, in_time=False).problems == []


@pytest.mark.slow
def test_clients_that_ask_again_see_nothing_of_a_killed_worker() -> None:
    assert kill.run(kills=1).problems == []


@pytest.mark.slow
def test_what_was_accepted_before_sigterm_is_answered() -> None:
    assert drain.run(seconds=2).problems == []


@pytest.mark.slow
def test_every_reply_belongs_to_the_bundle_that_it_names_while_bundles_are_swapped() -> None:
    assert swap.run(swaps=5).problems == []


@pytest.mark.slow
def test_good_questions_are_answered_beside_bad_ones_hang_ups_and_reloads() -> None:
    assert soak.run(seconds=5).problems == []


@pytest.mark.slow
def test_no_broken_request_breaks_the_server() -> None:
    assert fuzz.run(cases=250).problems == []


def test_the_slope_of_memory_is_found_with_its_confidence() -> None:
    rng = np.random.default_rng(0)
    seconds = np.linspace(0, 1800, 900)
    noise = rng.normal(0, 3, 900)
    per_hour, margin = soak.slope([*zip(seconds, 200 + 40 * seconds / 3600 + noise, strict=True)])
    assert abs(per_hour - 40) < margin < 10
    per_hour, margin = soak.slope([*zip(seconds, 200 + noise, strict=True)])
    assert abs(per_hour) < margin


def test_another_s_answer_and_a_part_of_one_s_own_are_wrong() -> None:
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
