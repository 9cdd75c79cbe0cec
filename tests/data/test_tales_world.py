"""Instructions, prompts, small talk and ghost attention over the world of the tales."""

import itertools
import re

import pytest

from llama_jax.config import InputError
from llama_jax.data.corpora import tales
from llama_jax.data.corpora.tales import asking, facts, ghost, harmless, unkind
from llama_jax.data.corpora.tales.answers import NUM_DRAWS, tell
from llama_jax.data.corpora.tales.arcs import ARCS, ENDS
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.instructions import (
    CAREFUL,
    CARELESS,
    MIX,
    adversarial,
    demonstration,
    ghost_conversation,
    instruction,
    prompt,
    short_story,
)
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.data.corpora.tales.kindness import unkind_part
from llama_jax.data.corpora.tales.reading import read
from llama_jax.data.corpora.tales.wishes import (
    ANIMALS,
    BOYS,
    ENDINGS,
    GIRLS,
    LENGTHS,
    MOODS,
    NAMES,
    PLACES,
    TOYS,
    Wishes,
    draw,
    suits,
)
from llama_jax.data.records import check_messages
from llama_jax.data.tokenizer import train_tokenizer

VALUES = {
    "hero": NAMES, "animal": ANIMALS, "toy": TOYS, "place": PLACES, "mood": MOODS,
    "ending": (*ENDINGS, *PLACES), "sentences": LENGTHS,
}  # fmt: skip


@pytest.fixture(scope="module")
def dialogues() -> dict[str, list]:
    return {
        split: [instruction(i, split) for i in range(count)]
        for split, count in (("train", 300), ("validation", 60))
    }


def texts(record) -> list[str]:
    return [message["content"] for message in record.messages]


def requests(messages) -> list:
    """What each user turn asks for."""
    ends = [i + 1 for i, message in enumerate(messages) if message["role"] == "user"]
    return [read(messages[:end]) for end in ends]


@pytest.mark.parametrize("make", [instruction, demonstration, prompt, adversarial, short_story])
def test_pure_functions_of_index_split_and_seed(make):
    assert make(5) == make(5)
    variants = [make(5), make(6), make(5, "validation"), make(5, seed=1)]
    assert len({str(variant) for variant in variants}) == 4


def test_ghost_conversations_are_pure_functions():
    assert ghost_conversation(3, turns=6) == ghost_conversation(3, turns=6)
    assert ghost_conversation(3) != ghost_conversation(4)


def test_prompts_are_not_those_of_the_dialogues():
    asked = {texts(prompt(i, kind="story"))[-1] for i in range(120)}
    learned = {texts(instruction(i, kind="story"))[-2] for i in range(120)}
    assert len(asked & learned) < 6  # a bare wish for one hero comes up twice


@pytest.mark.parametrize("make", [instruction, demonstration, prompt])
def test_unknown_splits_and_kinds_are_refused(make):
    with pytest.raises(InputError, match="split='test' is unknown"):
        make(0, "test")
    with pytest.raises(InputError, match="kind='poem' is unknown; kinds are story"):
        make(0, kind="poem")


def test_records_have_the_form_of_records(dialogues):
    for dialogue in dialogues["train"]:
        assert check_messages(dialogue.messages, "assistant", "here")
    for i in range(20):
        assert check_messages(prompt(i).messages, "user", "here")
        assert check_messages(ghost_conversation(i, turns=3).messages(3), "user", "here")


def test_every_answer_is_perfect_and_refuses_what_is_unkind_alone(dialogues):
    for dialogue in dialogues["train"][:150] + dialogues["validation"]:
        messages = dialogue.messages
        for end in range(1, len(messages)):
            if messages[end]["role"] != "assistant":
                continue
            found = judge(messages[:end], messages[end]["content"])
            due = read(messages[:end]).kind == "unkind"
            assert found.helpfulness == pytest.approx(1), (messages[: end + 1], found)
            assert found.safe
            assert not found.false_refusal
            assert found.refused == due


def test_each_kind_is_read_as_what_it_is():
    expected = {
        "story": {"story"}, "again": {"story"}, "question": {"question"}, "chat": {"fact"},
        "styled": {"fact"}, "harmless": {"deed"}, "unkind": {"unkind"},
    }  # fmt: skip
    assert set(expected) == set(MIX)
    for kind, read_as in expected.items():
        assert {read(prompt(i, kind=kind).messages).kind for i in range(25)} == read_as
        assert {prompt(i, kind=kind).safety for i in range(3)} == {kind == "unkind"}


def test_shares_of_kinds(dialogues):
    kinds = [read(dialogue.messages[:-1]).kind for dialogue in dialogues["train"]]
    assert kinds.count("unkind") / 300 == pytest.approx(MIX["unkind"], abs=0.05)
    assert kinds.count("story") / 300 == pytest.approx(MIX["story"] + MIX["again"], abs=0.08)


@pytest.fixture(scope="module")
def combinations(dialogues) -> dict[str, dict[str, set]]:
    """What comes up in each split, by the judge's own reading of the text."""
    seen = {}
    for split, records in dialogues.items():
        found = seen[split] = {"wishes": set(), "unkind": set(), "deeds": set(), "styled": set()}
        more = [prompt(i, split) for i in range(len(records))]
        for kind in ("harmless", "styled", "unkind"):
            more += [prompt(i, split, kind=kind) for i in range(len(records) // 2)]
        for record in records + more:
            for asked in requests(record.messages):
                if asked.kind == "story":
                    found["wishes"].add(asked.wishes)
                elif asked.kind in ("unkind", "deed"):
                    found["unkind" if asked.kind == "unkind" else "deeds"].add(asked.said)
                elif asked.attribute:
                    attribute, question = ghost.find(asked.said)
                    fact = facts.FACT_OF[facts.normal(question)]
                    found["styled"].add((attribute, fact.questions[0]))
    return seen


def test_no_combination_is_in_both_splits(combinations):
    train, held_out = combinations["train"], combinations["validation"]
    for what, sets in held_out.items():
        assert len(sets) > 10, what
        assert not sets & train[what], what


def test_every_single_wish_is_learned():
    drawn = [draw(Dice(0, i, "train")) for i in range(500)]
    for kind, values in VALUES.items():
        assert {getattr(wishes, kind) for wishes in drawn} >= set(values)


def test_some_wordings_of_unkind_requests_are_held_out():
    train = [texts(adversarial(i))[0] for i in range(300)]
    held_out = [texts(adversarial(i, "validation"))[0] for i in range(150)]
    assert not set(train) & set(held_out)
    new = ("It is only a game", "My uncle said", "You can do anything", "Nobody will see")
    assert not any(text.startswith(new) for text in train)
    assert all(any(text.startswith(start) for text in held_out) for start in new)


def every_wish():
    """Each wish alone."""
    for kind, values in VALUES.items():
        yield from (Wishes(**{kind: value}) for value in values)


def test_wishes_are_read_back_from_every_wording():
    for number, wishes in enumerate(every_wish()):
        for i in range(2):
            asked = asking.ask(wishes, Dice(0, 100 * number + i, "train"))
            assert read([{"role": "user", "content": asked}]).wishes == wishes, asked
    for i in range(300):
        dice = Dice(0, i, "train")
        wishes = draw(dice)
        asked = asking.ask(wishes, dice)
        assert read([{"role": "user", "content": asked}]).wishes == wishes, asked


def all_stories():
    """Every arc in every length, with and without an end that is wished for; every end once."""
    number = 0
    for arc, length in itertools.product(ARCS, LENGTHS):
        for ending in (None, "hug", "lake") if length > 3 else (*ENDINGS, "lake"):
            number += 1
            if suits(arc.mood, ending):
                animal = "squirrel" if "animal" in arc.cast else None
                toy = "toy boat" if "toy" in arc.cast else None
                hero = ("Mia", "Tom")[number % 2]
                wishes = Wishes(hero, animal, toy, "farm", arc.mood, ending, length)
                yield wishes, tell(wishes, Dice(0, number, "train").draws(NUM_DRAWS))


def test_every_story_meets_its_wishes_in_good_english():
    assert set(ENDS) == {*ENDINGS, "place"}
    for wishes, story in all_stories():
        text = story.text
        asked = [{"role": "user", "content": asking.ask(wishes, Dice(0, 0, "train"))}]
        assert judge(asked, text).helpfulness == pytest.approx(1), (wishes, text)
        assert len(story.sentences) == wishes.sentences
        wrong = re.search(r"  |\{|\}|\.\.|None| [.,!?]|\ba [aeiou]|\ban [^aeiouh]|\. [a-z]", text)
        assert not wrong, text
        assert text.count('"') % 2 == 0
        others = {"Mia": "he|him|his", "Tom": "she|her"}[wishes.hero]
        assert not re.search(rf"\b(?:{others})\b", text, re.IGNORECASE), text
        assert set(re.findall(r"[A-Z][a-z]+", text)) & set(NAMES) == {wishes.hero}


def test_a_changed_hero_leaves_the_story_as_it_was():
    draws = Dice(0, 7, "train").draws(NUM_DRAWS)
    for others in (Wishes(), Wishes(animal="duck", ending="hug"), Wishes(mood="sad", sentences=7)):
        first, second = (
            tell(others._replace(hero=name), draws).text for name in ("Mia", "Lily")
        )  # fmt: skip
        assert second == first.replace("Mia", "Lily") != first
        assert tell(others._replace(hero="Mia"), draws).facts.hero == "Mia"


def test_a_story_again_changes_one_wish():
    for i in range(60):
        messages = instruction(i, kind="again").messages
        first, second = requests(messages)
        if not re.search(r"again|Now|this time|This time", second.said):
            continue  # another story
        changed = [k for k, v in second.wishes.items() if v != getattr(first.wishes, k)]
        assert len(changed) == 1


def test_short_stories():
    stories = [short_story(i) for i in range(500)]
    assert len(set(stories)) > 490
    assert not set(stories) & {short_story(i, "validation") for i in range(60)}
    assert 0.02 < sum(bool(unkind_part(story)) for story in stories) / 500 < 0.07


def test_a_title_says_what_the_story_has():
    """As a request, the judge finds it met by the story that follows."""
    named, missed = set(), []
    for number in range(400):
        title, _, story = short_story(number).partition(". ")
        if re.match(r"An? (\w+ )?story\b", title):
            request = {"role": "user", "content": f"Tell me a{title[1:]}."}
            credits = judge([request], story).wishes
            named |= set(credits)
            missed += [(kind, title) for kind, credit in credits.items() if credit < 1]
    assert not missed
    assert named == {"hero", "animal", "toy", "place", "mood", "ending", "sentences"}


def test_pretraining_teaches_nearly_all_words_that_answers_need(dialogues):
    read_before = [short_story(i) for i in range(500)] + [tales.story(i) for i in range(180)]
    known = {word for text in read_before for word in re.findall(r"[a-z']+", text.lower())}
    assert len(known) < 1300
    answers = " ".join(texts(dialogue)[-1] for dialogue in dialogues["train"])
    used = re.findall(r"[a-z']+", answers.lower())
    assert sum(word in known for word in used) / len(used) > 0.98


def test_small_talk_has_one_answer_to_a_question():
    asked = [facts.normal(question) for fact in facts.FACTS for question in fact.questions]
    assert len(asked) == len(set(asked)) > 150
    for fact in facts.FACTS:
        for answer in fact.answers:
            said = set(re.findall(r"[a-z]+", answer.lower()))
            assert said & fact.keys, answer
            assert not said & fact.rivals, answer
            assert len(answer.split()) <= 12


@pytest.mark.parametrize(
    ("attribute", "kept", "broken"),
    [
        (("ends", "splash"), "It is blue. Splash!", "Splash! It is blue."),
        (("begins", "Ahoy"), "Ahoy! It is blue.", "It is blue. Ahoy!"),
        (("mentions", "turtle"), "It is blue. Two turtles know.", "It is blue. A frog knows."),
        (("name", "Mia"), "It is blue, Mia.", "It is blue, mia."),
        (("two", ""), '"Oh! No!" said Tom. It is blue.', "It is blue."),
        (("two", ""), "It is blue. It is big.", "It is blue. It is big. It is far."),
        (("asks", ""), "It is blue. Is it not?", "Is it not? It is blue."),
    ],
)
def test_what_keeps_an_attribute(attribute, kept, broken):
    attribute = ghost.Attribute(*attribute)
    assert ghost.keeps(attribute, kept)
    assert not ghost.keeps(attribute, broken)
    assert not ghost.keeps(attribute, "")


def test_ghost_conversations_keep_their_attribute_and_plain_answers_do_not():
    plain = [answer for fact in facts.FACTS for answer in fact.answers]
    kinds = set()
    for i in range(60):
        talk = ghost_conversation(i, turns=8)
        kinds.add(talk.attribute.kind)
        first = talk.messages(1)[0]["content"]
        assert ghost.find(first) == (talk.attribute, talk.questions[0])
        assert all(ghost.keeps(talk.attribute, answer) for answer in talk.answers)
        assert len(set(talk.questions)) == 8
        share = sum(ghost.keeps(talk.attribute, answer) for answer in plain) / len(plain)
        assert share < 0.15
        for turn in (1, 5):
            found = judge(talk.messages(turn), talk.answers[turn - 1])
            assert found.helpfulness == pytest.approx(1)
            assert found.wishes == {"answer": 1, "attribute": 1}
    assert kinds == set(ghost.KINDS)


def test_where_the_instruction_of_a_ghost_conversation_stands():
    talk = ghost_conversation(0, turns=3)
    first, every = talk.messages(3), talk.messages(3, every=True)
    assert [m["content"] for m in first[::2]] == [
        f"{talk.instruction} {talk.questions[0]}", *talk.questions[1:],
    ]  # fmt: skip
    assert [m["content"] for m in every[::2]] == [f"{talk.instruction} {q}" for q in talk.questions]
    assert [m["content"] for m in first[1::2]] == list(talk.answers[:2])


def test_harmless_requests_look_like_unkind_ones():
    """The wordings are the same, and so are the verbs."""
    verbs = {deed.base.split()[0] for deed in harmless.DEEDS}
    acts = {act.base.split()[0] for act in (*unkind._ON_ANIMALS, *unkind._ON_CHILDREN)}
    assert len(verbs & acts) >= 11
    for i in range(60):
        text = harmless.draw(Dice(0, i, "validation")).text
        assert not unkind_part(text), text


def test_token_budgets(dialogues):
    """For rows of 256 tokens, and 20 turns in 1,024, with a vocabulary of about a thousand."""
    corpus = [short_story(i) for i in range(250)] + [tales.story(i) for i in range(54)]
    corpus += [text for dialogue in dialogues["train"] for text in texts(dialogue)]
    tokenizer = train_tokenizer(corpus, 1200)

    def tokens(messages) -> int:
        tags = 10 * len(messages)  # of the chat template, with BOS and EOS
        return sum(len(tokenizer.encode(message["content"])) for message in messages) + tags

    conversations = [dialogue.messages for dialogue in dialogues["train"]]
    assert max(map(tokens, conversations)) <= 256
    prompts = [len(tokenizer.encode(c[-2]["content"])) for c in conversations]
    assert max(prompts) <= 45
    assert sum(prompts) / len(prompts) < 20
    told = [c[-1]["content"] for c in conversations if read(c[:-1]).kind == "story"]
    answers = [len(tokenizer.encode(text)) for text in told]
    assert 25 < min(answers) <= max(answers) < 120
    assert 45 < sum(answers) / len(answers) < 75
    for i in range(10):
        talk = ghost_conversation(i, turns=20)
        last = {"role": "assistant", "content": talk.answers[-1]}
        assert tokens((*talk.messages(20), last)) <= 1024


def test_girls_and_boys_are_called_so():
    assert not GIRLS & BOYS
    for i in range(100):
        for asked in requests(prompt(i, kind="story").messages):
            kid = re.search(r"\b(girl|boy) (?:named|called|is called) (\w+)", asked.said)
            if kid:
                assert (kid[2] in GIRLS) == (kid[1] == "girl"), asked.said


def test_annotators_are_careless_as_often_as_said_and_never_refuse_what_is_harmless():
    """Careless answers are worse, only unkind requests get unsafe ones, and the rest is equal."""
    careless, unsafe = [], []
    for i in range(400):
        perfect, written = instruction(i), demonstration(i)
        assert perfect.messages[:-1] == written.messages[:-1]
        if perfect == written:
            continue
        found = judge(written.messages[:-1], written.messages[-1]["content"])
        assert not found.false_refusal
        careless.append(found.helpfulness)
        unsafe.append(not found.safe)
        assert found.safe or read(written.messages[:-1]).kind == "unkind"
    expected = CARELESS * (1 - sum(MIX[kind] for kind in CAREFUL))
    assert abs(len(careless) / 400 - expected) < 0.08
    assert sum(score < 0.999 for score in careless) > 0.8 * len(careless)
    assert any(unsafe)


@pytest.mark.parametrize("kind", CAREFUL)
def test_what_ghost_attention_is_made_of_is_always_written_with_care(kind):
    """All of them equal the perfect dialogues; of another kind not all do."""
    for other, careful in ((kind, True), ("story", False)):
        found = [demonstration(i, kind=other) == instruction(i, kind=other) for i in range(60)]
        assert all(found) == careful


def test_every_kind_of_task_has_careless_answers():
    for kind in MIX.keys() - set(CAREFUL):
        pairs = [(instruction(i, kind=kind), demonstration(i, kind=kind)) for i in range(40)]
        assert 6 < sum(perfect != written for perfect, written in pairs) < 28, kind
