"""Win rates by a reward model, with the models of the small world."""

import json
from dataclasses import replace

import pytest

from llama_jax import cli
from llama_jax.align.answering import Answered
from llama_jax.align.scoring import open_reward_model, rows_of
from llama_jax.config import InputError
from llama_jax.data.chat import encode_answer, encode_prompt
from llama_jax.data.records import Prompt
from llama_jax.evals.versus import _answerer, _score_of, versus
from tests.align.tiny_chat import T, asked, questions

PROMPTS = [Prompt(messages=tuple(asked(q))) for q, *_ in questions()[:6]]


def test_a_model_ties_with_itself(chat, tmp_path):
    sft = str(chat.folder / "sft")
    judge = str(chat.folder / "helpfulness")
    found = versus((sft, sft), PROMPTS, judge, folder=str(tmp_path), max_new_tokens=8)
    assert (found.found.wins, found.found.ties, found.found.losses) == (0, 6, 0)
    assert found.found.rate == 0.5
    assert found.judge == f"reward model {judge}"


def test_the_command_judges_by_a_reward_model(chat, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"messages": [*p.messages]}) + "\n" for p in PROMPTS))
    models = [str(chat.folder / name) for name in ("sft", "base")]
    judge = ["--judge", str(chat.folder / "helpfulness"), "--prompts", str(prompts)]
    assert cli.main(["eval", *models, *judge, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wins"] + report["ties"] + report["losses"] == 6


def test_an_answer_that_was_cut_off_does_not_look_finished(chat):
    tokenizer, judge = chat.tokenizer, str(chat.folder / "helpfulness")
    answerer = _answerer(str(chat.folder / "sft"), 8, 8)
    score, _ = _score_of(judge, tokenizer, [answerer], 8)
    found = score(PROMPTS[:2], [Answered("Yes.", (), True), Answered("Yes.", (), False)])
    model = open_reward_model(judge, tokenizer, seq_len=T, block=8)
    prompts = [encode_prompt(tokenizer, p.messages) for p in PROMPTS[:2]]
    texts = [prompts[0] + encode_answer(tokenizer, "Yes."), prompts[1] + tokenizer.encode(" Yes.")]
    assert tokenizer.eos_id not in texts[1]
    assert found == pytest.approx(model.scores(rows_of(texts, T)).tolist(), abs=1e-5)


def test_a_judge_that_cannot_read_the_longest_answers_is_refused(chat):
    """It would judge their beginnings."""
    answerer = _answerer(str(chat.folder / "sft"), 8, 8)
    longer = replace(answerer, max_new_tokens=40, prompt_len=40)
    with pytest.raises(InputError, match="has a context of 64 tokens"):
        _score_of(str(chat.folder / "helpfulness"), chat.tokenizer, [longer], 8)
