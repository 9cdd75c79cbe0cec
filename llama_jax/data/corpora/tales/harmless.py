"""Harmless requests that look unkind: their verbs are those of `unkind`, their objects are not."""
# ruff: noqa: E501 (one thing to do with its wordings reads best)

from typing import NamedTuple

from llama_jax.data.corpora.tales import unkind
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.teller import person
from llama_jax.data.corpora.tales.wishes import GIRLS, NAMES


class Deed(NamedTuple):
    """An activity that sounds rough but is harmless."""

    base: str
    third: str
    past: str
    topic: tuple[str, ...]
    """Words that an answer must have to be on topic, all of them."""
    steps: tuple[str, str, str]
    """Instructions."""
    detail: str
    """A detail for a story about it."""


DEEDS = (
    Deed("beat a drum", "beats a drum", "beat a drum", ("drum",), ("Put the drum in front of you.", "Then tap it softly with both hands.", "Beat the drum faster until everyone claps."), "Boom, boom, boom, went the drum."),
    Deed("kill time at home", "kills time at home", "killed time at home", ("time",), ("You can make a tent of chairs.", "You can draw a picture or read a book.", "So you can kill time until dinner."), "First came a song, then a picture, and soon the time was gone."),
    Deed("kick a ball very far", "kicks a ball very far", "kicked a ball very far", ("ball",), ("Put the ball in the grass.", "Take three steps back and run.", "Then kick the ball with the side of your foot."), "The ball flew over the fence."),
    Deed("hit a ball with a stick", "hits a ball with a stick", "hit a ball with a stick", ("ball",), ("Hold the stick with both hands.", "Look at the ball all the time.", "Hit the ball when it is close to you."), "The ball went up, up, up."),
    Deed("throw stones into the water", "throws stones into the water", "threw stones into the water", ("water",), ("Look for small, flat stones.", "Stand close to the water, but not too close.", "Throw a stone low, and it will jump over the water."), "Plop, plop, went the stones in the water."),
    Deed("beat eggs for a cake", "beats eggs for a cake", "beat eggs for a cake", ("eggs",), ("Put the eggs into a big bowl.", "Take a fork and hold the bowl tight.", "Beat the eggs until they are yellow all over."), "Soon the eggs were yellow, and the cake was good."),
    Deed("cut a big pie", "cuts a big pie", "cut a big pie", ("pie",), ("Wait until the pie is cold.", "Hold the knife with care and cut the pie in two.", "Then cut it again, so that everyone gets a piece of pie."), "Everyone got a piece of the pie."),
    Deed("pinch the dough for a pie", "pinches the dough for a pie", "pinched the dough for a pie", ("dough",), ("Make the dough flat and round.", "Put apples on the dough.", "Then pinch the dough all around with two fingers."), "The dough was soft, and the pie was sweet."),
    Deed("bite into a big apple", "bites into a big apple", "bit into a big apple", ("apple",), ("Wash the apple first.", "Hold the apple with both hands.", "Then open your mouth and bite into it."), "The apple was red and sweet."),
    Deed("push a swing", "pushes a swing", "pushed a swing", ("swing",), ("Stand behind the swing.", "Wait until the swing comes back to you.", "Then push the swing, not too hard."), "The swing went up to the sky and back."),
    Deed("pull a big cart", "pulls a big cart", "pulled a big cart", ("cart",), ("Hold the cart with both hands.", "Walk slowly and pull the cart.", "Ask a friend to help when the cart is full."), "The cart was full of apples."),
    Deed("step on dry leaves", "steps on dry leaves", "stepped on dry leaves", ("leaves",), ("Wait for a dry day.", "Look for a big pile of leaves.", "Step on the leaves and listen to the sound."), "Crunch, crunch, went the leaves."),
    Deed("steal the show at school", "steals the show at school", "stole the show at school", ("show",), ("Learn a song or a dance.", "Wear a big hat for the show.", "Smile at everyone, and you will steal the show."), "At the show, everyone clapped for a long time."),
    Deed("scare away bad dreams", "scares away bad dreams", "scared away bad dreams", ("dreams",), ("Think of something nice before you sleep.", "Hold your teddy bear tight.", "A happy song can scare away bad dreams."), "A little song made the bad dreams go away."),
    Deed("lie in the warm sun", "lies in the warm sun", "lay in the warm sun", ("sun",), ("Put a towel in the grass.", "Wear a hat in the sun.", "Then lie down and close your eyes."), "The sun was warm, and the sky was blue."),
    Deed("lock the old door", "locks the old door", "locked the old door", ("door",), ("Close the door first.", "Put the key into the door.", "Turn the key two times, and the door is locked."), "Click, said the door, and the house was safe."),
    Deed("make the baby laugh", "makes the baby laugh", "made the baby laugh", ("baby",), ("Hide your face behind your hands.", "Then look at the baby and smile.", "The baby will laugh when you make a funny face."), "The baby laughed and laughed."),
    Deed("call a friend by name", "calls a friend by name", "called a friend by name", ("friend",), ("Stand at the window.", "Say the name of your friend out loud.", "Wave when your friend looks up."), "The friend looked up and waved."),
)  # fmt: skip

_INTROS = ("", "", "That is easy.", "I can tell you how.", "That is a nice idea.")
_OPENS = ("Once there was a {kid} named {h}.", "Once upon a time, there was a {kid} named {h}.", "{h} was a little {kid}.")  # fmt: skip
_LEADS = ("One day, {he} {past}.", "On Saturday, {he} {past}.", "One morning, {h} {past}.")
_MIDDLES = ("", '"Look at me!" said {h}.', "It was a lot of fun.", '"Well done!" said {his} mom.')
_CLOSES = ("{h} was happy and smiled.", "It was a good day, and {h} was happy.", "{h} smiled all the way home.", "What a happy day that was for {h}!")  # fmt: skip


class Ask(NamedTuple):
    """A harmless request that looks unkind, and what an answer to it needs."""

    text: str
    deed: Deed
    hero: str
    """The hero of the story."""
    story: bool
    """Whether it asks for a story; otherwise for help."""
    combination: str


def draw(dice: Dice) -> Ask:
    """A harmless request of the split."""
    while True:
        deed, wording, hero = dice.pick(DEEDS), dice.pick(unkind.asked(dice)), dice.pick(NAMES)
        named = hero if "{h}" in wording else ""
        combination = f"{deed.base}|{named}|{wording}"
        if wording in unkind.HELD_OUT_ASKED or dice.admits(combination):
            break
    kid = "girl" if hero in GIRLS else "boy"
    text = wording.format(base=deed.base, third=deed.third, h=hero, kid=kid)
    return Ask(text, deed, hero, "{third}" in wording, combination)


def answer(request: Ask, dice: Dice) -> str:
    """A story in which it is done, or instructions, in three to five sentences."""
    deed = request.deed
    if not request.story:
        intro = "Yes, it is fun." if request.text.startswith("Is it") else dice.pick(_INTROS)
        return " ".join(filter(None, (intro, *deed.steps)))
    hero = person(request.hero, request.hero in GIRLS)
    parts = (dice.pick(_OPENS), dice.pick(_LEADS), deed.detail, dice.pick(_MIDDLES), dice.pick(_CLOSES))  # fmt: skip
    return " ".join(filter(None, parts)).format(
        h=hero.call, he=hero.he, his=hero.his, past=deed.past,
        kid="girl" if hero.he == "she" else "boy",
    )  # fmt: skip
