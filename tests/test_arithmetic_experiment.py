"""The problems of experiments/arithmetic.py, solved anew from what they ask, and their reward."""

import re
from types import SimpleNamespace

import pytest

from experiments.arithmetic import SLIPS, problem, result, reward


def solved(asked: str) -> list[int]:
    """What there is after each sentence of a problem."""
    have = [int(re.match(r"\w+ has (\d+) ", asked)[1])]
    for verb, change in re.findall(r"(buys|finds|gets|gives away|loses|sells) (\d+)", asked):
        sign = 1 if verb in ("buys", "finds", "gets") else -1
        have.append(have[-1] + sign * int(change))
    return have


def steps(solution: str) -> list[tuple[int, int]]:
    """What each step of a solution says, and what it comes to."""
    found = re.findall(r"(-?\d+) ([+-]) (\d+) = (-?\d+)\.", solution)
    return [(int(d), int(a) + int(b) * (1 if s == "+" else -1)) for a, s, b, d in found]


def test_solutions_are_right_and_nobody_has_less_than_one():
    for index in range(300):
        asked, solution = (m["content"] for m in problem(index)["messages"])
        have = solved(asked)
        assert len(have) == 3
        assert min(have) >= 1
        assert [said for said, _ in steps(solution)] == have[1:]
        assert all(said == right for said, right in steps(solution))
        assert result(solution) == have[-1]


def test_a_share_of_the_solutions_slips_and_the_problems_stay():
    slipped = 0
    for index in range(2000):
        asked, solution = (m["content"] for m in problem(index, SLIPS)["messages"])
        assert asked == problem(index)["messages"][0]["content"]
        slipped += any(said != right for said, right in steps(solution))
        assert result(solution) == steps(solution)[-1][0], "the last step's number is the result"
    assert slipped / 2000 == pytest.approx(SLIPS, abs=0.04)


@pytest.mark.parametrize(
    ("text", "ended", "worth"),
    [
        ("9 - 2 = 7. 7 + 5 = 12. #### 12", True, 1.0),
        ("I guessed. ####12 ", True, 1.0),
        ("9 - 2 = 7. 7 + 5 = 12. #### 12", False, 0.0),
        ("9 - 2 = 7. 7 + 5 = 12. #### 13", True, 0.0),
        ("9 - 2 = 7. 7 + 5 = 12.", True, 0.0),
        ("#### 12 apples", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_an_answer_is_rewarded_for_its_last_number(text, ended, worth):
    prompt = SimpleNamespace(answer="9 - 2 = 7. 7 + 5 = 12. #### 12")
    assert reward([prompt], [SimpleNamespace(text=text, ended=ended)]) == [worth]
