# ruff: noqa: E501 (one story to a line)
import pytest

from llama_jax.data.corpora import tales
from llama_jax.data.corpora.tales.heroes import hero, hero_kept
from llama_jax.data.corpora.tales.stories import PLOTS

KEPT = {
    "alone": "Mia was a kind girl. She had a red ball.\nMia lost it.\nThen Mia found it again.",
    "a friend": "Once there was a boy named Tom.\nHis friend Ben came. Ben said, \"Hi, Tom!\"\nTom was happy.",
    "one paragraph": "There once was a girl called Zoe. Zoe laughed.",
    "told its name": "Leo was shy.\n\"My name is Ivy,\" said the new girl. Ivy smiled.\nLeo and Ivy were friends.",
    "tells its name": "Leo was shy.\n\"I am Ivy,\" said the new girl. Ivy smiled.\nLeo and Ivy were friends.",
    "a best friend": "Leo liked to build. His best friend was Ivy.\nIvy helped Leo.",
    "a fable": "Max was a duck. Next door lived a frog named Ivy. Ivy sang.\nMax gave Ivy some corn.",
}  # fmt: skip
LOST = {
    "nobody": "The sun was warm.\nThe grass was green.",
    "another hero": "Once there was a girl named Mia.\nLily lost her ball.\nLily was happy.",
    "another hero at the end": "Mia was a girl.\nMia lost her ball.\nLily found it.",
    "not in the last paragraph": "Mia was a girl.\nMia slept.\nThe end.",
    "a stranger": "Mia was a girl.\nOne day, Lily went to the park.\nMia was happy.",
    "a stranger, later a friend": "Mia was a girl.\nLily went out. Her friend Lily ran.\nMia slept.",
    "two friends": "Tom was a boy. His friend Ben came. His friend Sam came.\nTom slept.",
    "part of a word": "Tom was a boy.\nTommy met McTom.",
}


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_kept(text):
    assert hero_kept(text)
    assert hero_kept(f"{text}\n")


@pytest.mark.parametrize("text", LOST.values(), ids=LOST)
def test_lost(text):
    assert not hero_kept(text)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_story_of_the_corpus_keeps_its_hero(split):
    stories = [tales.story(i, split) for i in range(100 * len(PLOTS))]
    assert [story for story in stories if not hero_kept(story)] == []


def test_a_story_with_its_hero_renamed_halfway_is_lost():
    for i in range(len(PLOTS)):
        begin, _, rest = tales.story(i).partition("\n")
        name = str(hero(begin))
        other = next(child for child in ("Mia", "Tom", "Zoe") if child not in f"{begin}\n{rest}")
        assert not hero_kept(f"{begin}\n{rest.replace(name, other)}")


def test_names_stand_where_they_are_one_piece():
    """A name at the beginning of a paragraph or a quote is spelled in other pieces than the same
    name after a space, so that it could not be copied from there."""
    for i in range(20 * len(PLOTS)):
        _, *paragraphs = tales.story(i).split("\n")
        for part in [*paragraphs, *tales.story(i).split('"')[1::2]]:
            assert hero(part) is None or not part.startswith(str(hero(part))), part
