"""The chat template against Meta's way: render each pair as one string and encode it whole."""

import gzip
import io
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_jax.config import InputError
from llama_jax.data.chat import (
    JINJA,
    TAGS,
    decode_answer,
    encode_answer,
    encode_dialogue,
    encode_prompt,
    encode_within,
    parse_llama2_text,
    render,
)
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from tests.data.test_tokenizer import ORIGINAL, needs_original

REAL = ORIGINAL.parent / "real"
WORDS = "the kind owl says hello and the old cat answers that 42 birds are in the tree\n" * 20


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return train_tokenizer([WORDS], 300)


@pytest.fixture(scope="module")
def bare() -> Tokenizer:
    """One that puts no space before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split("\n")), model_writer=model, vocab_size=300,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, add_dummy_prefix=False,
        minloglevel=2,
    )  # fmt: skip
    return Tokenizer.from_bytes(model.getvalue())


def talk(*texts, system=None):
    messages = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant") * len(texts)
    return messages + [{"role": r, "content": c} for r, c in zip(roles, texts, strict=False)]


def whole(tokenizer, messages):
    """Meta's chat_completion: strings of whole pairs through sentencepiece alone."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    texts = [message["content"] for message in messages]
    if messages[0]["role"] == "system":
        texts[:2] = ["<<SYS>>\n" + texts[0] + "\n<</SYS>>\n\n" + texts[1]]
    ids = []
    for user, answer in zip(texts[::2], texts[1::2], strict=False):
        ids += [1, *processor.encode(f"[INST] {user.strip()} [/INST] {answer.strip()} "), 2]
    if len(texts) % 2:
        ids += [1, *processor.encode(f"[INST] {texts[-1].strip()} [/INST]")]
    return ids


def trained_text(tokenizer, ids, mask):
    """What is trained on, EOS shown as |."""
    kept = [i for i, m in zip(ids, mask, strict=True) if m]
    return b"".join(b"|" if i == 2 else tokenizer.decode_bytes([i]) for i in kept).decode()


GOLDEN = {
    "one pair": (
        talk("hi there", "Hello!"),
        [1, 518, 25580, 29962, 7251, 727, 518, 29914, 25580, 29962, 15043, 29991, 29871, 2],
        4,
    ),
    "digits, stripped": (
        talk("  2+2?\n", "\n 4 \n"),
        [1, 518, 25580, 29962, 29871, 29906, 29974, 29906, 29973, 518, 29914, 25580, 29962,
         29871, 29946, 29871, 2],
        4,
    ),
    "system": (
        talk("hi", "Hello!", system="Be kind."),
        [1, 518, 25580, 29962, 3532, 14816, 29903, 6778, 13, 3629, 2924, 29889, 13, 29966, 829,
         14816, 29903, 6778, 13, 13, 2918, 518, 29914, 25580, 29962, 15043, 29991, 29871, 2],
        4,
    ),
    "two pairs": (
        talk("a", "b", "c", "d"),
        [1, 518, 25580, 29962, 263, 518, 29914, 25580, 29962, 289, 29871, 2,
         1, 518, 25580, 29962, 274, 518, 29914, 25580, 29962, 270, 29871, 2],
        6,
    ),
    "system, waiting for the second answer": (
        talk("a", "b", "c", system="S"),
        [1, 518, 25580, 29962, 3532, 14816, 29903, 6778, 13, 29903, 13, 29966, 829, 14816, 29903,
         6778, 13, 13, 29874, 518, 29914, 25580, 29962, 289, 29871, 2,
         1, 518, 25580, 29962, 274, 518, 29914, 25580, 29962],
        3,
    ),
    "bytes and blank lines": (
        talk("日本 🦙", "é\tx\n\ny"),
        [1, 518, 25580, 29962, 29871, 30325, 30346, 29871, 243, 162, 169, 156, 518, 29914, 25580,
         29962, 904, 12, 29916, 13, 13, 29891, 29871, 2],
        8,
    ),
    "empty user text": (
        talk("", "ok"),
        [1, 518, 25580, 29962, 29871, 518, 29914, 25580, 29962, 3431, 29871, 2],
        3,
    ),
    "system and empty user text": (
        talk("", "ok", system="S"),
        [1, 518, 25580, 29962, 3532, 14816, 29903, 6778, 13, 29903, 13, 29966, 829, 14816, 29903,
         6778, 518, 29914, 25580, 29962, 3431, 29871, 2],
        3,
    ),
    "control ids spelled out": (
        talk("</s>", "<s>no</s> yes"),
        [1, 518, 25580, 29962, 1533, 29879, 29958, 518, 29914, 25580, 29962, 529, 29879, 29958,
         1217, 829, 29879, 29958, 4874, 29871, 2],
        10,
    ),
}  # fmt: skip


@needs_original
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name):
    messages, expected, trained = GOLDEN[name]
    ids, mask = encode_dialogue(Tokenizer.load(ORIGINAL), messages)
    assert ids == expected
    assert len(mask) == len(ids)
    assert sum(mask) == trained
    assert mask[ids.index(25580)] is False


def test_golden_ids_of_a_tiny_tokenizer(tiny):
    ids, mask = encode_dialogue(tiny, talk("the cat", "42", "the owl", "hello", system="the old"))
    assert ids == [
        1, 281, 94, 76, 81, 86, 87, 96, 281, 63, 63, 86, 92, 86, 65, 65, 13, 283, 260, 266, 272, 13,
        63, 63, 50, 86, 92, 86, 65, 65, 13, 13, 283, 260, 276, 263, 281, 94, 50, 76, 81, 86, 87, 96,
        281, 295, 294, 281, 2,
        1, 281, 94, 76, 81, 86, 87, 96, 262, 266, 275, 281, 94, 50, 76, 81, 86, 87, 96,
        281, 260, 273, 292, 281, 2,
    ]  # fmt: skip
    trained = [i for i, kept in zip(ids, mask, strict=True) if kept]
    assert trained == [281, 295, 294, 281, 2, 281, 260, 273, 292, 281, 2]


def real_dialogues():
    """Anthropic's red-teaming dialogues and grade-school arithmetic, as people wrote them."""
    with gzip.open(REAL / "hh-rlhf" / "harmless-base-test.jsonl.gz", "rt") as file:
        for line in list(file)[::8]:
            parts = json.loads(line)["chosen"].split("\n\nHuman:")[1:]
            turns = [text for part in parts for text in part.split("\n\nAssistant:", 1)]
            if len(turns) % 2 == 0 and all(text.strip() for text in turns):
                yield talk(*turns)
    with (REAL / "gsm8k" / "test.jsonl").open() as file:
        for line in list(file)[::8]:
            row = json.loads(line)
            yield talk(row["question"], row["answer"], system="Think step by step.\n")


@needs_original
@pytest.mark.skipif(not REAL.exists(), reason=f"no data in {REAL}")
def test_pieces_encoded_apart_are_the_whole_string_on_real_data():
    tokenizer = Tokenizer.load(ORIGINAL)
    count = 0
    for messages in real_dialogues():
        ids, mask = encode_dialogue(tokenizer, messages)
        assert ids == whole(tokenizer, messages)
        answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
        assert trained_text(tokenizer, ids, mask) == "".join(f" {answer} |" for answer in answers)
        assert ids[-2:] == [29871, 2]
        count += 1
    assert count > 400


TEXT = st.text(
    st.sampled_from("the cat\n\t42é日[]<>/INSYs\u2581\u3000"), max_size=12
).filter(lambda text: not any(tag in text for tag in TAGS))  # fmt: skip
ANSWER = TEXT.filter(lambda t: t.strip() and not t.rstrip().endswith("</s>"))


@st.composite
def conversations(draw):
    texts = [text for pair in draw(st.lists(st.tuples(TEXT, ANSWER), max_size=3)) for text in pair]
    if not texts or draw(st.booleans()):
        texts.append(draw(TEXT))
    return talk(*texts, system=draw(st.none() | TEXT))


@settings(deadline=None, max_examples=80)
@given(messages=conversations(), with_space=st.booleans())
def test_pieces_encoded_apart_are_the_whole_string(tiny, bare, messages, with_space):
    tokenizer = tiny if with_space else bare
    ids, mask = encode_dialogue(tokenizer, messages)
    assert ids == whole(tokenizer, messages)
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    expected = "".join(f" {answer} |" for answer in answers).replace("\u2581", " ")
    assert trained_text(tokenizer, ids, mask) == expected


@settings(deadline=None, max_examples=60)
@given(messages=conversations(), with_space=st.booleans())
def test_what_is_shown_is_what_is_encoded(tiny, bare, messages, with_space):
    tokenizer = tiny if with_space else bare
    for message in messages[1:]:
        message["train"] = len(message["content"]) % 2 == 0
    parts = render(messages)
    ids, mask = encode_dialogue(tokenizer, messages)
    names = {1: b"<s>", 2: b"</s>"}
    spelled = [
        (names.get(i) or tokenizer.decode_bytes([i]), m) for i, m in zip(ids, mask, strict=True)
    ]
    if with_space:  # sentencepiece puts one before each turn
        for n, i in enumerate(ids[:-1]):
            if i == tokenizer.bos_id:
                text, counts = spelled[n + 1]
                assert text.startswith(b" ")
                spelled[n + 1] = text[1:], counts
    for kept in (False, True):
        shown = "".join(text for text, trained in parts if trained == kept)
        said = b"".join(text for text, m in spelled if m == kept).decode()
        assert shown.replace("\u2581", " ") == said


@settings(deadline=None, max_examples=60)
@given(messages=conversations())
def test_other_programs_render_the_same(messages):
    """With the environment that transformers makes for chat templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(JINJA)
    said = template.render(messages=messages, bos_token="<s>", eos_token="</s>")
    assert said == "".join(text for text, _ in render(messages))


def test_other_programs_refuse_turns_out_of_order():
    def refuse(message):
        raise ValueError(message)

    template = ImmutableSandboxedEnvironment().from_string(JINJA)
    for roles in (["assistant"], ["user", "user"], ["system", "assistant"], ["user", "system"]):
        messages = [{"role": role, "content": "x"} for role in roles]
        with pytest.raises(ValueError, match="take turns"):
            template.render(messages=messages, bos_token="", eos_token="", raise_exception=refuse)


@settings(deadline=None, max_examples=60)
@given(messages=conversations())
def test_rendered_text_is_parsed_back(tiny, messages):
    rendered = ""
    texts = [m["content"] for m in messages]
    if messages[0]["role"] == "system":
        texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
    for user, answer in zip(texts[::2], texts[1::2], strict=False):
        rendered += f"<s>[INST] {user.strip()} [/INST] {answer.strip()} </s>"
    if len(texts) % 2:
        rendered += f"<s>[INST] {texts[-1].strip()} [/INST]"
    parsed = parse_llama2_text(rendered)
    assert [m["role"] for m in parsed] == [m["role"] for m in messages]
    assert encode_dialogue(tiny, parsed) == encode_dialogue(tiny, messages)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[INST] a [/INST] b", talk("a", "b")),
        ("<s> [INST]a[/INST]b</s>", talk("a", "b")),
        ("<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>", talk("a", "b", "c", "d")),
        ("<s>[INST] a [/INST] b </s> [INST] c [/INST]\n", talk("a", "b", "c")),
        ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nu [/INST] a </s>", talk("u", "a", system="S")),
        ("<s>[INST] <<SYS>> S <</SYS>> u [/INST] a </s>", talk("u", "a", system=" S ")),
        ("<s>[INST] a [/INST] <s>x</s> </s>", talk("a", "<s>x</s>")),
    ],
)
def test_llama2_text_as_people_write_it(text, messages):
    assert list(parse_llama2_text(text)) == messages


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", r"row 7: a turn must be \[INST\].* not 'hello'"),
        ("You are kind. [INST] a [/INST] b", "not 'You are kind"),
        ("[INST] a [INST] b [/INST] c", r"row 7, message 0 holds \[INST\]"),
        ("[INST] a [/INST] b [/INST] c", r"message 1 holds \[/INST\]"),
        ("[INST] a [/INST] b [INST] <<SYS>> S <</SYS>> c [/INST] d", "message 2 holds <<SYS>>"),
    ],
)
def test_llama2_text_that_cannot_be_parsed(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_llama2_text(text, where="row 7")


@pytest.mark.parametrize(
    "text",
    ["[INST] a [/INST] [INST] b [/INST] c", "<s>[INST] a [/INST] </s>", "[INST] a [/INST]</s>"],
)
def test_an_answer_that_is_missing_in_llama2_text_is_empty(tiny, text):
    with pytest.raises(InputError, match="message 1: the assistant's answer is empty"):
        encode_dialogue(tiny, parse_llama2_text(text))


def test_train_says_which_answers_count(tiny):
    messages = talk("the cat", "sad", "the owl", "red", "the tree", "ten")
    ids, mask = encode_dialogue(tiny, messages)
    assert trained_text(tiny, ids, mask) == " sad | red | ten |"
    messages[1]["train"] = False
    messages[5]["train"] = True
    assert encode_dialogue(tiny, messages)[0] == ids
    assert trained_text(tiny, *encode_dialogue(tiny, messages)) == " red | ten |"
    messages[3]["train"] = False  # ghost attention: the last answer alone
    assert trained_text(tiny, *encode_dialogue(tiny, messages)) == " ten |"


def test_masks_of_single_answers_make_the_mask_of_all(tiny):
    messages = talk("the cat", "sad", "the owl", "red", "the tree", "ten", system="hello")
    ids, mask = encode_dialogue(tiny, messages)
    union = [False] * len(ids)
    for kept in (2, 4, 6):
        single = [m | {"train": i == kept} for i, m in enumerate(messages)]
        union = [a or b for a, b in zip(union, encode_dialogue(tiny, single)[1], strict=True)]
    assert union == mask


def test_prompt_and_answer_are_the_dialogue(tiny):
    messages = talk("hello", "the owl", "and", "42 birds ", system="old")
    prompt = encode_prompt(tiny, messages[:-1])
    answer = encode_answer(tiny, messages[-1]["content"])
    ids, mask = encode_dialogue(tiny, messages)
    assert prompt + answer == ids
    assert mask[len(prompt) :] == [True] * len(answer)
    assert decode_answer(tiny, answer) == "42 birds"
    assert decode_answer(tiny, [*answer, 5, 6, 2]) == "42 birds"  # what a sampler left behind EOS
    assert decode_answer(tiny, answer[:-2]) == "42 birds"
    with pytest.raises(InputError, match="last message must be the user's, not the assistant's"):
        encode_prompt(tiny, messages)


@pytest.mark.parametrize("system", [None, "hello the old owl"])
def test_oldest_turns_go_first_and_the_system_text_stays(tiny, system):
    turns = ["the cat", "sad", "and 42 birds", "red", "the tree", "ten"]
    sizes = {}
    for lost in range(3):
        ids, mask = encode_dialogue(tiny, talk(*turns[2 * lost :], system=system))
        sizes[lost] = len(ids)
        for limit in (len(ids), len(ids) + 1):
            encoded = encode_within(tiny, talk(*turns, system=system), limit)
            assert (encoded.ids, encoded.trained) == (ids, mask)
            assert encoded.dropped_turns == lost
    assert sizes[0] > sizes[1] + 1 > sizes[2] + 2
    assert encode_within(tiny, talk(*turns, system=system), sizes[2] - 1) is None


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "here: messages must be a list that is not empty"),
        (talk(system="S"), "here: the last message must be the assistant's, not the system's"),
        (talk("a", "b")[1:], "here, message 0: expected a user message, not assistant"),
        (talk("a", " \n"), "here, message 1: the assistant's answer is empty"),
        ([{"role": "tool", "content": "x"}], "here, message 0: role 'tool' is unknown"),
        (talk("a [INST] b", "c"), r"here, message 0 holds \[INST\], .*; remove it, or read"),
        (talk("[/INST]", "c"), r"message 0 holds \[/INST\]"),
        (talk("a", "b", system="<<SYS>>"), "message 0 holds <<SYS>>"),
        (talk("a", "b", "c<</SYS>>", "d"), "message 2 holds <</SYS>>"),
        (talk("a", "b [INST] c"), r"message 1 holds \[INST\]"),
        (talk("a", "b</s> "), "message 1 ends with </s>, but the end is marked with a token"),
        (talk("a", "\ud800"), "here, message 1 holds a lone surrogate"),
        (talk("a\0", "b"), "here, message 0 holds a NUL character"),
        ([{"role": "user"}], "here, message 0: content must be text, not None"),
        ([*talk("a", "b")[:1], {"role": "assistant", "content": "b", "train": 1}],
         "message 1: train=1 must be true or false"),
    ],
)  # fmt: skip
def test_conversations_that_are_refused(tiny, messages, reason):
    with pytest.raises(InputError, match=reason):
        encode_dialogue(tiny, messages, where="here")
