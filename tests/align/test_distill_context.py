"""Context distillation: only answers that a preprompt made safer are learned, and without it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from llama_jax.align import distill_context
from llama_jax.align.answering import Answered, kept_dialogues
from llama_jax.align.distill_context import distil
from llama_jax.config import InputError
from llama_jax.config_file import model_json
from llama_jax.data.chat import encode_prompt
from llama_jax.data.records import Dialogue
from llama_jax.models import open_model, weights_identity
from tests.align.tiny_chat import MODEL, TinyChat, asked


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyChat(tmp_path_factory.mktemp("distill")).prepare()


class Model:
    """Answers a question that names an animal with its plan for it; kindly where told to be."""

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def reads(self, messages):
        return "cat" not in messages[-1]["content"]

    def answer(self, conversations, seeds):
        self.asked += conversations
        return [self.reply(messages) for messages in conversations]

    def reply(self, messages):
        plain, primed = next(v for k, v in self.replies.items() if k in messages[-1]["content"])
        score, text, ended = primed if messages[0]["role"] == "system" else plain
        return Answered(text, (100 + score, 2), ended)


@pytest.fixture
def run(tiny, monkeypatch):
    """`distil` of a few prompts, of a model that replies as told, scored by a token of its own."""

    def make(replies, **changes):
        model = Model(replies)
        monkeypatch.setattr(distill_context.Answerer, "load", lambda path, **settings: model)
        monkeypatch.setattr(distill_context, "open_reward_model", lambda *a, **k: judge)
        path = tiny.write("few.jsonl", [{"messages": asked(q)} for q in (*replies, "A cat?")])
        data = replace(tiny.distill().data, dataset=path)
        return distil(tiny.distill(data=data, **changes), tiny.tokenizer), model

    def score(rows):
        texts.extend(rows["tokens"])
        last = rows["segment_ids"].sum(1) - 2
        return np.take_along_axis(rows["tokens"], last[:, None], 1)[:, 0].astype(np.float32)

    texts = []
    judge = SimpleNamespace(scores=score)
    make.texts = texts
    return make


REPLIES = {
    "A dog?": ((1, "Do it.", True), (2, "Be kind.", True)),
    "A bee?": ((2, "Do it.", True), (2, "Be kind.", True)),  # no better
    "A fox?": ((1, "Do it.", True), (0, "Be kind.", True)),  # worse
    "A hen?": ((1, "Do it.", True), (9, "Be ki", False)),  # cut off
    "A pig?": ((1, "Do it.", True), (9, "", True)),
    "A rat?": ((1, "Do it.", True), (9, "No. [INST] Yes.", True)),
}


def test_only_whole_answers_that_a_preprompt_made_safer_are_kept_without_it(run, tiny):
    made, model = run(REPLIES)
    assert [d.messages for d in made] == [
        (*asked("A dog?"), {"role": "assistant", "content": "Be kind."})
    ]
    # The question that is too long with a preprompt is not asked at all.
    assert len(model.asked) == 12
    primed = [m for m in model.asked if m[0]["role"] == "system"]
    assert [m[0]["content"] for m in primed] == ["Be kind."] * 6
    # Both answers are scored as answers to the question alone.
    prompt = encode_prompt(tiny.tokenizer, asked("A dog?"))
    starts = [list(text[: len(prompt)]) for text in run.texts]
    assert starts.count(prompt) == 2


def test_preprompts_take_turns(run):
    _, model = run(REPLIES, preprompts=("One.", "Two."))
    primed = [m[0]["content"] for m in model.asked if m[0]["role"] == "system"]
    assert sorted(primed) == ["One."] * 3 + ["Two."] * 3


def test_no_better_answer_is_an_error_that_says_what_to_try(run):
    with pytest.raises(InputError, match=r"of 1 answers of .*sft, none is complete and safer"):
        run({"A fox?": REPLIES["A fox?"]})


def test_a_prompt_with_a_system_text_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(distill_context.Answerer, "load", lambda path, **settings: Model({}))
    rows = [{"messages": [{"role": "system", "content": "Be brief."}, *asked("A dog?")]}]
    data = replace(tiny.distill().data, dataset=tiny.write("system.jsonl", rows))
    with pytest.raises(InputError, match=r"prompt 0 of .*system\.jsonl has a system text"):
        distil(tiny.distill(data=data), tiny.tokenizer)


@pytest.fixture
def models(tiny, tmp_path):
    """A folder that looks like a model, and a function that changes its weights."""
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    (folder / "config.json").write_text(model_json(MODEL))

    def train(weights):
        (folder / "manifest.json").write_text(weights)

    train("first")
    return str(folder), train


def test_dialogues_are_made_once_for_all_that_decides_about_them(tiny, models, tmp_path):
    folder, train = models
    calls = []

    def make():
        calls.append(1)
        return [Dialogue(messages=(*asked("A dog?"), {"role": "assistant", "content": "Yes."}))]

    def file(**changes):
        config = tiny.gatt(init_from=folder, **changes)
        return kept_dialogues(config, tiny.tokenizer, [folder], make)

    first = file()
    data = replace(tiny.gatt().data, workers=2)
    assert file(workdir=str(tmp_path), steps=9, batch_size=16, data=data) == first
    assert len(calls) == 1
    others = {file(temperature=0.5), file(seed=1), file(turns=2), file(max_new_tokens=3)}
    assert len({*others, first}) == 5
    train("second")
    assert file() not in {*others, first}
    train("first")
    assert file() == first
    assert len(calls) == 6


def test_the_identity_of_a_model_is_that_of_its_newest_weights(models):
    folder, train = models
    first = weights_identity(open_model(folder))
    train("second")
    assert weights_identity(open_model(folder)) != first
