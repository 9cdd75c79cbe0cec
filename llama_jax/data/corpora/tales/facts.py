"""Small talk: questions that every child can answer, with answers of one or two short sentences."""
# ruff: noqa: E501 (one fact to a line reads best)

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from llama_jax.data.corpora.tales.prose import words
from llama_jax.data.corpora.tales.teller import a
from llama_jax.data.corpora.tales.words import ANIMALS


class Fact(NamedTuple):
    """A question in several wordings, its answers, and keywords that identify a right answer."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    keys: frozenset[str]
    """An answer with one of these words is right ..."""
    rivals: frozenset[str]
    """... unless it also has one of these."""


_SOUNDS = {x.name: x.sound.lower() for x in ANIMALS if x.sound not in ("Sniff", "Hmm")}
_FOODS = {x.name: x.food for x in ANIMALS}
_COLORS = {
    "sky": "blue", "grass": "green", "sun": "yellow", "snow": "white", "night": "black",
    "frog": "green", "sea": "blue", "milk": "white", "banana": "yellow", "leaf": "green",
}  # fmt: skip
_OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("happy", "sad"), ("up", "down"), ("left", "right"),
    ("fast", "slow"), ("old", "new"), ("open", "closed"), ("wet", "dry"), ("long", "short"),
    ("loud", "quiet"), ("day", "night"), ("good", "bad"), ("hard", "soft"),
)  # fmt: skip
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PASTIMES = {
    "in the garden": ("watch the bees", "smell the flowers"),
    "at the park": ("play on the swings", "go down the slide"),
    "at the beach": ("build a sand castle", "look for shells"),
    "in the forest": ("look for mushrooms", "listen to the birds"),
    "on the farm": ("feed the hens", "jump in the hay"),
    "at the lake": ("watch the fish", "walk over the bridge"),
    "in the yard": ("draw with chalk", "watch the ants"),
    "on the hill": ("fly a kite", "look at the clouds"),
}
_FEELINGS = (
    ("I am sad.", "I am so sad today.", "hug", "I am sorry that you are sad. A hug may help.", "A big hug can help when you are sad."),
    ("I am hungry.", "I want to eat something.", "apple", "You can eat an apple.", "An apple is good when you are hungry."),
    ("I am tired.", "I am so sleepy.", "nap", "You can take a nap.", "A nap is good when you are tired."),
    ("I am cold.", "It is so cold today.", "coat", "You can put on a warm coat.", "A warm coat will help."),
    ("I am thirsty.", "It is so hot today.", "water", "You can drink some water.", "A glass of water will help."),
    ("I am bored.", "What can I do now?", "game", "You can play a game.", "Let us play a game together."),
    ("I am wet.", "The rain made me wet.", "towel", "You can take a dry towel.", "A dry towel will help."),
    ("I am happy.", "I am so happy today.", "glad", "I am glad that you are happy.", "That is nice. I am glad too."),
    ("Hello!", "Good morning!", "hello", "Hello! It is nice to see you.", "Hello, my friend."),
    ("How are you?", "How do you feel today?", "fine", "I am fine today.", "Thank you, I am fine."),
    ("Good night!", "I am going to bed.", "night", "Good night! Sleep well.", "Sleep well, and good night."),
    ("Thank you!", "Thank you so much!", "welcome", "You are welcome.", "You are welcome, my friend."),
)  # fmt: skip
_ABOUT = (
    ("puppy", "A puppy runs fast and wags its tail.", "Once a puppy found a bone and ran home with it."),
    ("kitten", "A kitten is soft and drinks milk.", "Once a kitten slept in a shoe all day."),
    ("bird", "A bird can fly and lives in a nest.", "Once a bird sang a song for the moon."),
    ("rabbit", "A rabbit has long ears and can hop.", "Once a rabbit shared its last carrot with a friend."),
    ("duck", "A duck can swim and has orange feet.", "Once a duck swam to the other side of the lake."),
    ("frog", "A frog is green and can jump far.", "Once a frog jumped so high that it saw the sea."),
    ("squirrel", "A squirrel climbs trees and eats nuts.", "Once a squirrel forgot where its nuts were."),
    ("hedgehog", "A hedgehog is round and sleeps all winter.", "Once a hedgehog slept under a pile of leaves."),
    ("mouse", "A mouse is small and lives in a hole.", "Once a mouse danced with a piece of cheese."),
    ("turtle", "A turtle is slow and carries its house.", "Once a turtle won a race against the wind."),
)  # fmt: skip


def _facts() -> Iterator[Fact]:
    sounds, colors = frozenset(_SOUNDS.values()), frozenset(_COLORS.values())
    foods, numbers = frozenset(_FOODS.values()), frozenset(_NUMBERS)
    for name, sound in _SOUNDS.items():
        yield Fact(
            (f"What does {a(name)} say?", f"Which sound does {a(name)} make?"),
            (f"{a(name).capitalize()} says {sound}.", f"It says {sound}, {sound}."),
            frozenset([sound]), sounds - {sound},
        )  # fmt: skip
    for name, food in _FOODS.items():
        yield Fact(
            (f"What does {a(name)} like best?", f"What can I give to {a(name)}?"),
            (f"{a(name).capitalize()} likes {food} best.", f"You can give it some {food}."),
            frozenset([food]), foods - {food},
        )  # fmt: skip
    for thing, color in _COLORS.items():
        the = a(thing) if thing in ("frog", "banana", "leaf") else f"the {thing}"
        the = thing if thing in ("grass", "snow", "milk") else the
        yield Fact(
            (f"What color is {the}?", f"Do you know the color of {the}?"),
            (f"{the.capitalize()} is {color}.", f"It is {color}."),
            frozenset([color]), colors - {color},
        )  # fmt: skip
    for pair in _OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            yield Fact(
                (f"What is the opposite of {word}?", f"Which word means the opposite of {word}?"),
                (f"The opposite of {word} is {opposite}.", f"It is {opposite}."),
                frozenset([opposite]), frozenset(),
            )  # fmt: skip
    for before, after in pairwise(_NUMBERS):
        yield Fact(
            (f"What comes after {before}?", f"Which number follows {before}?"),
            (f"After {before} comes {after}.", f"It is {after}."),
            frozenset([after]), numbers - {before, after},
        )  # fmt: skip
    for at, pastimes in _PASTIMES.items():
        yield Fact(
            (f"What can I do {at}?", f"What is fun {at}?"),
            tuple(f"You can {pastime} {at}." for pastime in pastimes),
            frozenset(pastime.split()[-1] for pastime in pastimes), frozenset(),
        )  # fmt: skip
    for name, about, tiny in _ABOUT:
        key, rivals = frozenset([name]), frozenset(_FOODS) - {name}
        yield Fact(
            (f"Tell me something about {a(name)}.", f"What do you know about {a(name)}?"),
            (about,),
            key,
            rivals,
        )
        yield Fact(
            (
                f"Tell me a very short story about {a(name)}.",
                f"Do you know a very short story about {a(name)}?",
            ),
            (tiny,),
            key,
            rivals,
        )
    for first, second, key, *answers in _FEELINGS:
        yield Fact((first, second), tuple(answers), frozenset([key]), frozenset())


FACTS = tuple(_facts())


def normal(text: str) -> str:
    """A question in lower case without punctuation, as a key for look-ups."""
    return " ".join(words(text.lower()))


FACT_OF = {normal(question): fact for fact in FACTS for question in fact.questions}
"""Facts by their normal questions."""
