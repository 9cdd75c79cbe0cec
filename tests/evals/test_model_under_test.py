"""A real, small model against full forward passes; the harness's rules written down once more."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import MeshConfig
from llama_jax.convert.usage import Usage
from llama_jax.data.chat import encode_dialogue
from llama_jax.evals.language_model import Request, Writing
from llama_jax.evals.likelihood import Pair, score_pairs
from llama_jax.evals.model_under_test import ModelUnderTest, until_first
from llama_jax.infer.api import generate
from llama_jax.model.cache import prepare
from llama_jax.model.llama import apply
from llama_jax.models import Model
from llama_jax.parallel.mesh import make_mesh
from tests.convert.models import GROUPED, random_params, tokenizer
from tests.evals.lookup import questions, run, write_task

CONFIG = replace(GROUPED, max_seq_len=96)
TOKENIZER = tokenizer()
STORY = "Once upon a time there was a little girl named Mia. She liked to play in the park."


@pytest.fixture(scope="module")
def model():
    return Model(CONFIG, random_params(CONFIG), TOKENIZER)


@pytest.fixture(scope="module")
def logprobs(model):
    """ids -> log-probabilities [T, V] of what follows each, float64, from one full forward pass."""
    forward = jax.jit(lambda tokens: apply(model.params, tokens, config=CONFIG))

    def of(ids):
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(forward(padded), np.float64)[0, : len(ids)]
        return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))

    return of


def exact(logprobs, context, continuation):
    """Log-probability and whether it is the likeliest, of each token of a continuation."""
    ids = [*context, *continuation]
    rows = logprobs(ids[:-1])[len(context) - 1 :]
    chosen = rows[np.arange(len(continuation)), continuation]
    return chosen, rows.argmax(axis=-1) == continuation


PAIRS = [
    Pair([1], [5, 9]), Pair([1, 7, 8, 9], [300]), Pair([1, 7, 8, 9], [301, 4, 4, 4, 5]),
    Pair(list(range(1, 60)), [9] * 30), Pair(list(range(1, 60)), [9]), Pair([2], list(range(96))),
]  # fmt: skip


def test_a_copied_cache_gives_what_a_full_forward_pass_gives(model, logprobs):
    w = prepare(model.params, CONFIG)
    found = dict(score_pairs(w, PAIRS, config=CONFIG, rows=2))
    assert sorted(found) == list(range(len(PAIRS)))
    for number, pair in enumerate(PAIRS):
        logp, best = exact(logprobs, *pair)
        np.testing.assert_allclose(found[number].logp, logp, atol=2e-4)
        np.testing.assert_array_equal(found[number].best, best)


def test_the_longest_contexts_come_first_and_equal_ones_share_a_cache(model, monkeypatch):
    from llama_jax.evals import likelihood

    contexts = []
    made = likelihood.new_state
    monkeypatch.setattr(
        likelihood, "new_state", lambda c, *a, **k: contexts.append(list(c)) or made(c, *a, **k)
    )
    list(score_pairs(prepare(model.params, CONFIG), PAIRS, config=CONFIG, rows=2))
    assert [len(c) for group in contexts for c in group] == [59, 4, 1, 1]


def test_a_mesh_changes_nothing_but_rounding(model, logprobs):
    with jax.set_mesh(make_mesh(MeshConfig())):
        split = ModelUnderTest(Model(CONFIG, random_params(CONFIG), TOKENIZER), rows=2)
        (found,) = [x for _, x in split.likelihoods([Request("Mia", " is sad.")])]
    pair = split.encode_pair(Request("Mia", " is sad."))
    assert found.logp == pytest.approx(exact(logprobs, *pair)[0].sum(), abs=1e-3)


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is Mia?"},
    {"role": "assistant", "content": "A girl."},
    {"role": "user", "content": "And </s>Tom?"},
]


def exact_greedy(logprobs, ids, count):
    """The likeliest next tokens, from full forward passes."""
    found = []
    for _ in range(count):
        found.append(int(logprobs([*ids, *found])[-1].argmax()))
    return found


def test_a_conversation_as_context_has_the_ids_of_training(model, logprobs):
    asked = ModelUnderTest(model, rows=2)
    text = asked.written_out(MESSAGES)
    whole, trained = encode_dialogue(
        TOKENIZER, [*MESSAGES, {"role": "assistant", "content": "A dog."}]
    )
    pair = asked.encode_pair(Request(text, " A dog."))
    begin = len(trained) - trained[::-1].index(False)
    assert (pair.context, pair.continuation) == (whole[:begin], TOKENIZER.encode("A dog."))
    assert whole[begin:-1] == TOKENIZER.encode("A dog. ")
    assert pair.context.count(TOKENIZER.bos_id) == 2
    assert pair.context.count(TOKENIZER.eos_id) == 1  # the user's is text
    assert asked.encode_pair(Request(f"{text} ", "x")).context.count(TOKENIZER.bos_id) == 1
    (answers,) = dict(asked.answers([(0, text)], Writing(max_new_tokens=6))).values()
    drawn = exact_greedy(logprobs, pair.context, 6)
    assert answers[0].text == TOKENIZER.decode(drawn, after=pair.context)


def harness_pair(context, continuation):
    """lm-evaluation-harness 0.4, TemplateLM.loglikelihood and _encode_pair, from their
    documentation, with a tokenizer that begins a text with BOS."""
    encode = lambda text: TOKENIZER.encode(text, bos=True)  # noqa: E731
    if context == "":
        return [TOKENIZER.bos_id], TOKENIZER.encode(continuation)
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole, before = encode(context + continuation), encode(context)
    return before, whole[len(before) :]


WORDS = st.lists(st.sampled_from(["the", "Mia", "a dog,", "é", "\n", "park.", " "]), max_size=6)


@given(WORDS, st.sampled_from(["", " ", "  ", "\n", " \n"]), WORDS, st.sampled_from(["", " "]))
@settings(deadline=None, max_examples=60)
def test_texts_become_tokens_by_the_rule_of_the_harness(before, end, after, delimiter):
    context, continuation = " ".join(before) + end, delimiter + " ".join(after) + "x"
    expected = harness_pair(context, continuation)
    found = ModelUnderTest(Model(CONFIG, {}, TOKENIZER), 1).encode_pair(
        Request(context, continuation)
    )
    if context.strip() and expected[1]:
        assert tuple(map(list, found)) == tuple(map(list, expected))
    assert found.context
    assert found.continuation


def test_a_continuation_inside_the_last_piece_still_has_a_likelihood():
    model = ModelUnderTest(Model(CONFIG, {}, TOKENIZER), 1)
    merged = next(
        (a, b) for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"
        if len(TOKENIZER.encode(a + b)) == len(TOKENIZER.encode(a))
    )  # fmt: skip
    context, continuation = model.encode_pair(Request(*merged))
    assert [*context, *continuation] == TOKENIZER.encode("".join(merged), bos=True)
    assert len(continuation) == 1


def test_bos_is_left_out_where_the_files_of_a_model_say_so(model):
    bare = replace(model, usage=Usage(add_bos=False))
    pair = ModelUnderTest(bare, 1).encode_pair(Request("Mia", " is"))
    assert list(pair.context) == TOKENIZER.encode("Mia")
    assert ModelUnderTest(bare, 1).digest != ModelUnderTest(model, 1).digest


def harness_scores(logprobs, question):
    """acc and acc_norm of a multiple choice question, as the harness takes them."""
    sums = [
        exact(logprobs, *harness_pair(context, " " + choice))[0].sum()
        for context, choice in zip(question.contexts, question.choices, strict=True)
    ]
    lengths = [len(choice) for choice in question.choices]
    return (
        float(np.argmax(sums) in question.golds),
        float(np.argmax(np.divide(sums, lengths)) in question.golds),
    )


def test_a_task_gives_the_harness_s_own_result_for_every_question(model, logprobs, tmp_path):
    words = ["the", "a", "Mia", "park", "dog", "little girl", "play in the park", "sad."]
    rng = np.random.default_rng(3)
    rows = [
        {"q": f"{rng.choice(words)} {rng.choice(words)} ",
         "c": [str(c) for c in rng.choice(words, 4, replace=False)], "a": int(rng.integers(4))}
        for _ in range(24)
    ]  # fmt: skip
    task, asked = questions(
        write_task(
            tmp_path, rows=rows, kind="choice", metrics=["acc", "acc_norm"],
            prompt="Question: {q}\nAnswer:", choices="c", answer="a", shots=1,
        )
    )  # fmt: skip
    found = run(task, asked, ModelUnderTest(model, rows=8), tmp_path)
    expected = [harness_scores(logprobs, q) for q in asked]
    assert found.too_long == 0
    assert found.scores["acc"] == [acc for acc, _ in expected]
    assert found.scores["acc_norm"] == [norm for _, norm in expected]
    assert 0 < found.values["acc"].value < 1
    assert found.scores["acc"] != found.scores["acc_norm"]


def test_what_is_longer_than_the_context_is_said_and_the_rest_is_scored(model):
    under = ModelUnderTest(model, rows=2)
    long = "Mia played. " * 40
    found = dict(under.likelihoods([Request(long, " x"), Request("Mia", " x")]))
    assert found[0] is None
    assert found[1].tokens > 0
    answered = dict(under.answers([(0, long), (1, "Mia")], Writing(max_new_tokens=4)))
    assert answered[0] is None
    assert len(answered[1]) == 1


def harness_windows(ids, context):
    """Disjoint rolling windows of the harness, from the drawing in its documentation: inputs of
    `context` tokens, the first from BOS; the last one is filled up with what came before."""
    found, done = [], 0
    while done < len(ids):
        new = min(context, len(ids) - done)
        inputs = [TOKENIZER.bos_id, *ids][max(0, done + new - context) : done + new]
        found.append((inputs, ids[done : done + new]))
        done += new
    return found


@pytest.mark.parametrize("length", [1, 95, 96, 97, 200])
def test_windows_are_those_of_the_harness(model, length):
    ids = [3 + i % 300 for i in range(length)]
    pairs = ModelUnderTest(model, 1)._windows(ids, CONFIG.max_seq_len)
    for (context, new), (inputs, predicted) in zip(pairs, harness_windows(ids, 96), strict=True):
        assert [*context, *new[:-1]] == inputs
        assert list(new) == predicted


@pytest.mark.parametrize("stride", [1, 10, 96])
def test_every_token_is_predicted_once_with_all_the_context_that_the_stride_leaves(model, stride):
    ids = list(range(3, 153))
    pairs = ModelUnderTest(model, 1)._windows(ids, stride)
    assert [i for pair in pairs for i in pair.continuation] == ids
    assert list(pairs[0].context) == [TOKENIZER.bos_id]
    for pair in pairs[1:]:
        inputs = len(pair.context) + len(pair.continuation) - 1
        assert inputs == 96
        assert len(pair.continuation) <= stride


def test_the_likelihood_of_a_whole_text_is_that_of_its_windows(model, logprobs):
    under = ModelUnderTest(model, rows=4)
    long = STORY * 3
    found = dict(under.rolling([STORY, "", long], stride=32))
    ids = TOKENIZER.encode(STORY)
    assert found[0].logp == pytest.approx(exact(logprobs, [1], ids)[0].sum(), abs=2e-3)
    assert (found[0].tokens, found[1].tokens) == (len(ids), 0)
    expected = sum(
        exact(logprobs, *pair)[0].sum() for pair in under._windows(TOKENIZER.encode(long), 32)
    )
    assert found[2].logp == pytest.approx(expected, abs=5e-3)
    assert found[2].tokens == len(TOKENIZER.encode(long)) > 96


def test_greedy_answers_are_those_of_generate_and_end_where_they_are_told(model):
    under = ModelUnderTest(model, rows=2)
    prompts = [(0, "Once upon"), (1, "Mia")]
    found = dict(under.answers(prompts, Writing(max_new_tokens=20)))
    for number, prompt in prompts:
        whole = generate(model, prompt, max_new_tokens=20, temperature=0.0)
        assert prompt + found[number][0].text == whole
        assert not found[number][0].cut
    text = found[0][0].text
    for end in (text[3], text[2:5], text[-2:]):
        ((_, (ended,)),) = under.answers(prompts[:1], Writing(max_new_tokens=20, until=(end, "☃")))
        assert ended.text == text[: text.index(end)]


def test_an_answer_that_the_context_cuts_off_is_marked(model):
    under = ModelUnderTest(model, rows=2)
    prompt = STORY[:-1]
    room = CONFIG.max_seq_len - len(TOKENIZER.encode(prompt, bos=True))
    found = {}
    for new in (room - 1, room + 50):
        ((_, (found[new],)),) = under.answers([(0, prompt)], Writing(max_new_tokens=new))
    assert not found[room - 1].cut
    assert found[room + 50].cut


def test_samples_differ_and_are_the_same_whatever_is_drawn_beside_them(model):
    under = ModelUnderTest(model, rows=4)
    writing = Writing(max_new_tokens=12, temperature=1.0, samples=3)
    together = dict(under.answers([(5, "Mia"), (6, "Mia"), (7, "The dog")], writing))
    alone = dict(under.answers([(6, "Mia")], writing))
    assert alone[0] == together[1] != together[0]
    assert len({answer.text for answer in together[0]}) > 1


def test_a_chat_prompt_is_put_as_a_user_s_message(model):
    under = ModelUnderTest(model, rows=1)
    assert under._prompt("Hi", True) == TOKENIZER.encode("[INST] Hi [/INST]", bos=True)
    assert under._prompt("Hi ", False) == TOKENIZER.encode("Hi", bos=True)
    assert under._prompt("", False) == [TOKENIZER.bos_id]


def test_a_text_ends_before_the_first_of_its_ends():
    assert until_first("a\nQ: b. c", (".", "Q:")) == "a\n"
    assert until_first("abc", ()) == "abc"


def test_the_digest_knows_weights_and_settings(model):
    digest = ModelUnderTest(model, 1).digest
    assert digest == ModelUnderTest(Model(CONFIG, random_params(CONFIG), TOKENIZER), 4).digest
    params = jax.tree.map(lambda x: x, model.params)
    params["norm"] = params["norm"].at[0].add(1e-3)
    theta = replace(CONFIG, rope_theta=123.0)
    for other in (Model(CONFIG, params, TOKENIZER), Model(theta, model.params, TOKENIZER)):
        assert ModelUnderTest(other, 1).digest != digest
