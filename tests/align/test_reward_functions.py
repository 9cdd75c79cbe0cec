"""Rewards that a function gives: found by name, called once, and refused in one line."""

import json

import numpy as np
import pytest

from llama_jax.align.answering import Answered
from llama_jax.align.grpo import grpo
from llama_jax.align.reward_functions import RewardFunction, open_function
from llama_jax.config import InputError
from llama_jax.data.conversations import EncodedPrompt
from llama_jax.data.corpora.tales import instructions
from llama_jax.data.corpora.tales.judge import judge
from tests.align.tiny_chat import asked
from tests.devices import devices
from tests.train.tiny import digests

PROMPTS = [
    EncodedPrompt(f"{n:016x}", tuple(asked(f"Question {n}?")), (1, 2), False, "", 0.5, f"{n}")
    for n in range(2)
]
ANSWERS = [Answered("0", (5, 2), True), Answered("7", (6, 2), False)]


def scores(function):
    return RewardFunction("mine:reward", function).score(PROMPTS, {}, ANSWERS)


def test_a_function_sees_prompts_with_their_answers_and_what_was_said():
    found = scores(lambda prompts, answers: [
        p.answer == a.text and a.ended and p.messages[0]["content"] == "Question 0?"
        for p, a in zip(prompts, answers, strict=True)
    ])  # fmt: skip
    np.testing.assert_array_equal(found.combined, np.float32([1, 0]))
    assert found.combined.dtype == np.float32
    assert found.helpfulness is found.safety is None
    assert found.of(1) == {"score": 0.0}
    np.testing.assert_array_equal(scores(lambda *_: np.array([0.5, 2])).combined, [0.5, 2])
    np.testing.assert_array_equal(scores(lambda *_: (x for x in (1, 2.5))).combined, [1, 2.5])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 numbers for 2 answers"),
        ([1.0] * 3, "returned 3 numbers for 2 answers"),
        ([0.0, float("nan")], "returned nan for the answer '7' to 'Question 1?'"),
        ([float("-inf"), 0.0], "returned -inf for the answer '0' to 'Question 0?'"),
        ([0.0, 1e39], "returned 1e+39 for"),  # no float32
        ([0.0, None], "returned None for"),
        ([0.0, "1"], "returned '1' for"),
        ([0.0, np.zeros(2)], r"returned array([0., 0.]) for"),
        (None, "raised TypeError("),
    ],
)
def test_what_is_no_number_for_each_answer_is_one_line(returned, message):
    with pytest.raises(InputError) as error:
        scores(lambda *_: returned)
    said = str(error.value)
    assert said.startswith(f"reward mine:reward {message}")
    assert said.endswith("; the answers are kept: repair it, and run the same command again")
    assert "\n" not in said


def test_a_function_that_raises_is_named_with_its_line():
    def wrong(prompts, answers):
        return [1 / 0 for _ in answers]

    with pytest.raises(InputError, match=r"raised ZeroDivisionError\('division by zero'\) \(.*test_"
                       r"reward_functions.py, line \d+\); the answers are kept"):  # fmt: skip
        scores(wrong)


def test_functions_of_files_and_modules_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rewards.py").write_text(
        "def length(prompts, answers):\n    return [len(a.text) for a in answers]\nLIMIT = 3\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    for name in ("own_rewards:length", "own_rewards.py:length", str(tmp_path / "own_rewards.py")):
        name = name if ":" in name else f"{name}:length"
        found = open_function(name)
        assert found.digest() == name
        np.testing.assert_array_equal(found.score(PROMPTS, {}, ANSWERS).combined, [1, 1])
    for name, message in (
        ("own_rewards", "reward=own_rewards must be module:function, FILE.py:function or judge"),
        ("own_rewards:size", "own_rewards has no function size"),
        ("own_rewards:LIMIT", "own_rewards has no function LIMIT"),
        ("nowhere:reward", "there is no module nowhere, here or installed"),
        ("nowhere.py:reward", "nowhere.py is not a file"),
        ("broken.py:reward", "broken.py does not run: ModuleNotFoundError"),
        ("broken:reward", "broken does not run: ModuleNotFoundError"),
    ):
        with pytest.raises(InputError, match=message) as error:
            open_function(name)
        assert "\n" not in str(error.value)


def test_the_rule_judge_is_that_of_the_reports():
    prompt = instructions.prompt(3, "validation")
    asked_for = EncodedPrompt("0" * 16, prompt.messages, (1,), False, "", 1.0)
    answers = [Answered("Mia had a kitten. They played.", (), ended) for ended in (True, False)]
    found = open_function("judge").function([asked_for] * 2, answers)
    assert found == [judge(prompt.messages, a.text, a.ended).helpfulness for a in answers]
    assert found[0] > found[1] > 0


def test_a_repaired_function_goes_on_with_the_answers_that_were_drawn(chat, tmp_path):
    """What fails in the second iteration costs nothing: the run ends as one that never failed."""
    source = (
        "from tests.align.tiny_chat import likeness\ncalls = 0\ndef reward(prompts, answers):\n"
        "    global calls\n    calls += 1\n    {}\n    return likeness(prompts, answers)\n"
    )
    file = tmp_path / "rewards.py"
    settings = {"reward": f"{file}:reward", "eval_every": 0}
    with devices(1):
        file.write_text(source.format("assert calls < 2, 'twice'"))
        with pytest.raises(InputError, match=r"raised AssertionError\('twice'\)"):
            grpo(chat.grpo(workdir=str(tmp_path / "run"), **settings))
        assert [f.name for f in (tmp_path / "run" / "rollouts").iterdir()] == ["000001.npz"]
        kept = (tmp_path / "run" / "rollouts" / "000001.npz").read_bytes()
        file.write_text(source.format("pass"))
        summary = grpo(chat.grpo(workdir=str(tmp_path / "run"), **settings))
        assert (summary.resumed_from, summary.step) == (1, 3)
        reference = grpo(chat.grpo(workdir=str(tmp_path / "reference"), **settings))
    assert kept
    assert digests(tmp_path / "run", 3) == digests(tmp_path / "reference", 3)
    assert reference.last["score/mean"] == summary.last["score/mean"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
