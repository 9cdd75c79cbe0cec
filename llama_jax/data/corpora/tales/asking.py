"""Phrases wishes as text: requests for stories, requests to change them, questions about them."""
# ruff: noqa: E501 (one wording with its variants to a line reads best)

from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.teller import a
from llama_jax.data.corpora.tales.wishes import GIRLS, LENGTHS, PLACES, Facts, Wishes

_OPENINGS = (
    "Tell me", "Please tell me", "Write", "Please write", "I want", "I would like", "Make up",
    "Give me", "Can you tell me", "Could you write", "May I have", "I want to hear",
)  # fmt: skip
_INLINE = {"hero": 0.8, "animal": 0.7, "toy": 0.7, "place": 0.6, "mood": 0.7, "ending": 0.3, "sentences": 0.6}  # fmt: skip
"""How often a wish stands in the first sentence and not in one of its own."""

_TITLED = 0.7
"""How often a title names a fact of its story."""

_APART = {
    "hero": ("The hero is {hero}.", "The {kid} is called {name}.", "It is about {hero}."),
    "animal": ("There should be {animal} in it.", "Put {animal} in it.", "I want {animal} in it."),
    "toy": ("There should be {toy} in it.", "Put {toy} in it.", "I want {toy} in it."),
    "place": ("It happens {place}.", "It should happen {place}.", "Let it happen {place}."),
    "mood": ("Make it {mood}.", "It should be {mood}.", "I like {mood} stories."),
    "ending": ("It must end {ending}.", "It should end {ending}.", "Let it end {ending}.", "Please end it {ending}."),
    "sentences": ("Use {sentences} sentences.", "Make it {sentences} sentences long.", "It should have {sentences} sentences."),
}  # fmt: skip

_CHANGES = {
    "hero": ("Now tell it again, but with {hero}.", "Tell it again with {hero}, please.", "The same story again, but the hero is {hero}.", "Can it be about {hero} this time?"),
    "animal": ("Now tell it again with {animal}.", "This time with {animal}, please.", "Can you tell it again, but with {animal}?"),
    "toy": ("Now tell it again with {toy}.", "This time with {toy}, please.", "Can you tell it again, but with {toy}?"),
    "place": ("Now tell it again, but {place}.", "This time {place}, please.", "Can it happen {place} this time?"),
    "mood": ("Now make it {mood}.", "Tell it again as {a_mood} story.", "This time, make it {mood}, please."),
    "ending": ("Now let it end {ending}.", "Tell it again, but it must end {ending}.", "Can it end {ending} this time?"),
    "sentences": ("Now tell it in {sentences} sentences.", "Tell it again in {sentences} sentences, please.", "Can you tell it again in {sentences} sentences?"),
}  # fmt: skip

_QUESTIONS = {
    "hero": (("Who is the story about?", "Who is the hero?"), ("The story is about {name}.", "The hero is {hero}.", "It is about {hero}.")),
    "animal": (("Which animal is in the story?", "What animal was there?"), ("It is {animal}.", "There is {animal} in the story.")),
    "toy": (("Which toy is in the story?", "What toy was there?"), ("It is {toy}.", "There is {toy} in the story.")),
    "place": (("Where did {name} go?", "Where does it happen?"), ("It happens {place}.", "{name} was {place}.")),
    "mood": (("What kind of story is it?", "Is it a happy or a sad story?"), ("It is {a_mood} story.", "I think that it is {a_mood} story.")),
}  # fmt: skip
"""Questions about a story that was told, and answers."""
QUESTION_KINDS = tuple(_QUESTIONS)


def ask(wishes: Wishes, dice: Dice) -> str:
    """A request for a story with these wishes."""
    words = _words(wishes, dice)
    inline = {kind for kind, _ in wishes.items() if dice.chance(_INLINE[kind])}
    about = [words[kind] for kind in ("hero", "animal", "toy") if kind in inline]
    if about and about[0] == words.get("hero") and dice.chance(0.25):
        about[0] = words["name"]
    opening = dice.pick(_OPENINGS)
    end = "?" if opening[-1] == "e" and opening[0] in "CM" else "."
    first = f"{opening} {_phrase(words, inline, about)}{end}"
    apart = [dice.pick(_APART[kind]) for kind, _ in wishes.items() if kind not in inline]
    if len(apart) == 2 and dice.chance(0.5):
        apart.reverse()
    return " ".join([first, *[sentence.format_map(words) for sentence in apart]])


def title(facts: Facts, dice: Dice) -> str:
    """A first sentence that tells what a story is about; it mentions each fact more often than
    not."""
    words = _words(facts, dice)
    said = {kind for kind in _INLINE if kind in words and dice.chance(_TITLED)}
    about = [words[kind] for kind in ("hero", "animal", "toy") if kind in said]
    phrase = _phrase(words, said, about)
    return f"{phrase[0].upper()}{phrase[1:]}."


def _phrase(words: dict[str, str], said: set[str], about: list[str]) -> str:
    """A story with what is said of it: "a sad story about a kitten in the park"."""
    return (
        f"{words['a_mood'] if 'mood' in said else 'a'} story"
        f"{f' about {" and ".join(about)}' if about else ''}"
        f"{f' {words["place"]}' if 'place' in said else ''}"
        f"{f' in {words["sentences"]} sentences' if 'sentences' in said else ''}"
        f"{f' that ends {words["ending"]}' if 'ending' in said else ''}"
    )


def ask_again(wishes: Wishes, kind: str, dice: Dice) -> str:
    """A request to tell the last story again with its wish of this kind changed."""
    return dice.pick(_CHANGES[kind]).format_map(_words(wishes, dice))


def question(kind: str, facts: Facts, dice: Dice) -> str:
    """A question about a story with these facts."""
    return dice.pick(_QUESTIONS[kind][0]).format_map(_words(facts, dice))


def answer(kind: str, facts: Facts, dice: Dice) -> str:
    """Its answer."""
    return dice.pick(_QUESTIONS[kind][1]).format_map(_words(facts, dice))


def _words(wishes: Wishes | Facts, dice: Dice) -> dict[str, str]:
    """How each wish is called in a sentence."""
    words = {}
    if wishes.hero:
        kid = "girl" if wishes.hero in GIRLS else "boy"
        named = dice.pick(("named", "called"))
        words |= {"name": wishes.hero, "kid": kid, "hero": f"a {kid} {named} {wishes.hero}"}
    if wishes.animal:
        words["animal"] = a(wishes.animal)
    if wishes.toy:
        words["toy"] = a(wishes.toy)
    if wishes.place:
        words["place"] = PLACES[wishes.place].at
    if wishes.mood:
        words |= {"mood": wishes.mood, "a_mood": a(wishes.mood)}
    if wishes.ending:
        at = PLACES[wishes.ending].at if wishes.ending in PLACES else f"with a {wishes.ending}"
        words["ending"] = at
    if wishes.sentences:
        words["sentences"] = LENGTHS[wishes.sentences]
    return words
