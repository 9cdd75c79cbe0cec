import re
from collections import Counter

import pytest

from llama_jax.data.corpora import python_docs, tales
from llama_jax.data.corpora.tales import words
from llama_jax.data.corpora.tales.stories import PLOTS
from llama_jax.data.split import in_validation

NAMES = set(words.GIRLS) | set(words.BOYS)
STORIES = 18 * 120


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return [tales.story(i) for i in range(STORIES)]


def hero(index: int, split: str) -> str:
    """The first name in a story belongs to its hero, except where a friend opens it."""
    return next(w for w in re.findall(r"[A-Z][a-z]+", tales.story(index, split)) if w in NAMES)


def test_pure_function_of_seed_split_and_index():
    assert tales.story(5) == tales.story(5)
    others = {tales.story(5), tales.story(6), tales.story(5, "validation"), tales.story(5, seed=1)}
    assert len(others) == 4


def test_distinct_and_validation_is_disjoint(stories):
    assert len(set(stories)) == len(stories)
    held_out = {tales.story(i, "validation") for i in range(1000)}
    assert len(held_out) == 1000
    assert not held_out & set(stories)


def test_validation_holds_out_pairs_of_plot_and_hero():
    train = {(i % len(PLOTS), hero(i, "train")) for i in range(STORIES)}
    held_out = {(i % len(PLOTS), hero(i, "validation")) for i in range(540)}
    assert not train & held_out
    assert {name for _, name in held_out} <= {name for _, name in train}  # no unknown names


def test_length_and_vocabulary(stories):
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 60
    assert max(lengths) <= 220
    types = Counter(w for story in stories for w in re.findall(r"[a-z']+", story.lower()))
    assert 800 <= len(types) <= 1500


def test_sentences_are_well_formed(stories):
    for story in stories:
        assert not re.search(r"  | [.,!?]|\{|\}|\.\.|None|\ba [aeiou]|\ban [^aeiou]", story), story
        assert story.count('"') % 2 == 0
        for paragraph in story.split("\n"):
            assert re.match(r'["A-Z]', paragraph)
            assert re.search(r'[.!?]"?$', paragraph)
            outside = re.sub(r'"[^"]*"', '""', paragraph)
            for sentence in re.split(r"(?<=[.!?]) ", outside):
                assert sentence[0].isupper() or sentence[0] == '"', sentence


def test_what_is_lost_is_found_where_it_was_put():
    checked = 0
    for i in range(0, STORIES, len(PLOTS)):
        story = tales.story(i)
        put = re.search(r"(?:put the [\w ]+ down|left the [\w ]+?) ((?:under|behind|in|next|near|between)[\w ]*?)(?:, because| and ran)", story)  # fmt: skip # noqa: E501
        found = re.search(r"put it down ([\w ]+)\.", story)
        wrong = re.search(r"looked ([\w ]+), but it was not there", story)
        assert put, story
        assert found, story
        assert wrong, story
        assert put[1] == found[1] != wrong[1], story
        checked += 1
    assert checked == 120


def test_pronouns_agree_with_the_hero():
    """Where a girl is alone with a girl's things, nothing is his; and the other way round."""
    learning = [p.__name__ for p in PLOTS].index("learning")
    for i in range(learning, STORIES, len(PLOTS)):
        story, name = tales.story(i), hero(i, "train")
        mine, other = ("her", "his") if name in words.GIRLS else ("his", "her")
        assert re.search(rf"\b{mine} ", story.lower()), story
        relative = re.findall(rf"\b{other} (?:big |little )?\w+", story.lower())
        assert all(r.split()[0] != other or "hug" in r for r in relative), story


def test_python_docs_are_prose_split_by_document():
    train, held_out = python_docs.documents("train"), python_docs.documents("validation")
    assert len(train) > 3000
    assert 0.03 < len(held_out) / (len(train) + len(held_out)) < 0.07
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train)
    assert min(map(len, train)) >= python_docs.MIN_CHARACTERS - 10  # stripped after the cut
    assert sum(map(len, train)) > 1_500_000
    assert any("assert" in text and "statement" in text for text in train)


def test_split_is_a_property_of_the_text():
    texts = [f"document {i}" for i in range(4000)]
    held_out = [text for text in texts if in_validation(text)]
    assert 0.035 < len(held_out) / len(texts) < 0.065
    assert held_out == [text for text in texts if in_validation(str(text))]


def test_builders_store_what_the_generators_give(tmp_path, monkeypatch):
    from llama_jax.data.corpora import builders

    monkeypatch.setattr(tales, "NUM_TRAIN", 50)
    monkeypatch.setattr(tales, "NUM_VALIDATION", 20)
    builder = builders.Tales(data_dir=str(tmp_path))
    builder.download_and_prepare()
    source = builder.as_data_source(split="train")
    assert len(source) == builder.info.splits["train"].num_examples == 50
    stored = sorted(source[i]["text"].decode() for i in range(50))
    assert stored == sorted(tales.story(i) for i in range(50))


def test_builder_notices_missing_examples(tmp_path, monkeypatch):
    from llama_jax.data.corpora import builders

    monkeypatch.setattr(builders, "_count", lambda path: 7)
    monkeypatch.setattr(tales, "NUM_TRAIN", 50)
    monkeypatch.setattr(tales, "NUM_VALIDATION", 20)
    with pytest.raises(RuntimeError, match="holds 7 examples, its metadata says 50"):
        builders.Tales(data_dir=str(tmp_path)).download_and_prepare()
    assert not (tmp_path / "tales" / f"{tales.VERSION}.0.0").exists()


def test_builders_of_records_store_what_the_generators_give(tmp_path, monkeypatch):
    from llama_jax.data.corpora import builders
    from llama_jax.data.corpora.tales import instructions, preferences

    monkeypatch.setattr(instructions, "NUM_TRAIN", 12)
    monkeypatch.setattr(instructions, "NUM_VALIDATION", 3)
    dialogues = builders.TalesDialogues(data_dir=str(tmp_path))
    dialogues.download_and_prepare()
    for split, size in (("train", 12), ("validation", 3)):
        stored = []
        for example in dialogues.as_data_source(split=split):
            turns = zip(*(example["messages"][k] for k in ("role", "content")), strict=True)
            stored.append([{"role": r.decode(), "content": c.decode()} for r, c in turns])
        made = [list(instructions.demonstration(i, split).messages) for i in range(size)]
        assert sorted(map(str, stored)) == sorted(map(str, made))

    pairs = builders.TalesPreferences(data_dir=str(tmp_path))
    pairs.download_and_prepare()
    stored = {
        (e["chosen"].decode(), e["rejected"].decode(), int(e["rating"]), bool(e["safe_rejected"]))
        for e in pairs.as_data_source(split="train")
    }
    kinds = [kind for kind in preferences.MIXES for _ in range(12)]
    made = [preferences.preference(i % 12, "train", kind) for i, kind in enumerate(kinds)]
    assert stored == {(p.chosen, p.rejected, p.rating, p.safe_rejected) for p in made}
