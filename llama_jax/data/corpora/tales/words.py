"""The small world of the tales: people, places, toys, animals, food, and what goes with what."""
# ruff: noqa: E501 (one sentence with its variants to a line reads as the story does)

from typing import NamedTuple


class Person(NamedTuple):
    """A name and its pronouns; `call` is how others speak of the person in a sentence."""

    call: str
    he: str
    him: str
    his: str

    @property
    def He(self) -> str:
        """`he` at the beginning of a sentence."""
        return self.he.capitalize()

    @property
    def His(self) -> str:
        """`his` at the beginning of a sentence."""
        return self.his.capitalize()

    @property
    def Call(self) -> str:
        """`call` at the beginning of a sentence."""
        return self.call[0].upper() + self.call[1:]


class Place(NamedTuple):
    """Somewhere outside: `at` and `to` are phrases, `spots` where a small thing can lie."""

    at: str
    to: str
    sights: tuple[str, ...]
    spots: tuple[str, ...]
    pastimes: tuple[str, ...]


class Toy(NamedTuple):
    """A thing small enough to carry: its looks, what was done with it, and doing it."""

    name: str
    looks: tuple[str, ...]
    played: tuple[str, ...]
    playing: str


class Animal(NamedTuple):
    """An animal: its young looks, sound, how it moves and what it likes to eat."""

    name: str
    looks: tuple[str, ...]
    sound: str
    moved: str
    food: str
    home: str


GIRLS = [
    "Mia", "Lily", "Anna", "Sara", "Emma", "Zoe", "Ruby", "Lucy",
    "Nora", "Ella", "Rosa", "Ivy", "Amy", "Kate", "Maya", "Jane",
]  # fmt: skip
BOYS = [
    "Tom", "Ben", "Max", "Sam", "Leo", "Tim", "Jack", "Finn",
    "Noah", "Dan", "Joe", "Luke", "Eli", "Owen", "Adam", "Oscar",
]  # fmt: skip
PETS = [
    "Spot",
    "Coco",
    "Pip",
    "Fluffy",
    "Lucky",
    "Rusty",
    "Teddy",
    "Bingo",
    "Nibbles",
    "Sunny",
    "Pepper",
    "Biscuit",
    "Button",
    "Patch",
    "Honey",
    "Dot",
    "Ziggy",
    "Peanut",
    "Muffin",
    "Shadow",
]

WOMEN = ("mom", "grandma", "aunt", "big sister")
MEN = ("dad", "grandpa", "uncle", "big brother")

RED, BLUE, GREEN, YELLOW = "red", "blue", "green", "yellow"
COLORS = (RED, BLUE, GREEN, YELLOW, "orange", "purple", "pink", "white")
PAINTED = (RED, BLUE, GREEN, YELLOW, "orange", "purple")

PLACES = (
    Place(
        "in the garden", "to the garden",
        ("The flowers were red and yellow.", "Bees flew from flower to flower.", "The grass was soft and green."),
        ("under the apple tree", "behind the bushes", "in the tall grass", "next to the old bench", "between the flowers"),
        ("smelled the flowers", "watched the bees", "picked some berries", "climbed the apple tree"),
    ),
    Place(
        "at the park", "to the park",
        ("Many children were playing there.", "The trees were tall and green.", "A man was selling ice cream by the gate."),
        ("under the long bench", "behind the big tree", "next to the slide", "near the pond", "under the swings"),
        ("went down the slide", "played on the swings", "fed the ducks at the pond", "ran around the big tree"),
    ),
    Place(
        "at the beach", "to the beach",
        ("The sand was warm and the water was blue.", "White birds flew over the sea.", "Little waves ran up the sand."),
        ("under a towel", "behind a big rock", "next to the sand castle", "near an old boat", "between two rocks"),
        ("built a sand castle", "jumped over the waves", "looked for shells", "dug a deep hole"),
    ),
    Place(
        "in the forest", "to the forest",
        ("The trees were so tall that they hid the sky.", "The leaves made a soft sound in the wind.", "It smelled of wood and leaves."),
        ("under a pile of leaves", "behind a fallen tree", "next to the little river", "near a gray rock", "under a green bush"),
        ("looked for mushrooms", "jumped over the little river", "listened to the birds", "collected leaves"),
    ),
    Place(
        "on the farm", "to the farm",
        ("The cows were eating grass.", "A hen walked by with her chicks.", "It smelled of hay."),
        ("behind the barn", "under the old cart", "in the hay", "next to the fence", "near the well"),
        ("fed the hens", "jumped in the hay", "looked at the little pigs", "patted the brown horse"),
    ),
    Place(
        "at the lake", "to the lake",
        ("The water was still and clear.", "A duck swam by with her babies.", "Small fish jumped out of the water."),
        ("under the wooden bridge", "behind a round rock", "in the tall grass", "next to the boat", "near the willow tree"),
        ("threw stones into the water", "watched the fish", "walked over the bridge", "looked for frogs"),
    ),
    Place(
        "in the yard", "out to the yard",
        ("The sun was warm.", "A little bird sat on the fence.", "The wind was soft."),
        ("behind the shed", "under the steps", "next to the fence", "in the flower pot", "under the big tree"),
        ("drew on the ground with chalk", "chased a butterfly", "played on the swing", "watched the ants"),
    ),
    Place(
        "on the hill", "up the hill",
        ("They could see the whole town from there.", "The wind blew through the grass.", "The sky was big and blue."),
        ("behind a rock", "in the tall grass", "under the old tree", "next to the path", "near the wooden fence"),
        ("rolled down the hill", "picked flowers", "looked at the clouds", "ran in big circles"),
    ),
)  # fmt: skip

TOYS = (
    Toy("ball", COLORS, ("kicked the ball as far as possible", "threw the ball high into the air", "bounced the ball again and again"), "playing ball"),
    Toy("doll", ("little", "old", "pretty", "soft"), ("made a bed of leaves for the doll", "told the doll a story", "gave the doll a pretend lunch"), "playing with the doll"),
    Toy("teddy bear", ("brown", "soft", "little", "white"), ("showed the teddy bear everything", "gave the teddy bear a big hug", "carried the teddy bear around"), "playing with the teddy bear"),
    Toy("toy car", PAINTED, ("drove the toy car over the ground", "made a long road for the toy car", "raced the toy car down a little hill"), "playing with the toy car"),
    Toy("robot", ("silver", "little", "blue", "red"), ("made the robot walk in a line", "pretended that the robot could talk", "showed the robot the way"), "playing with the robot"),
    Toy("toy train", PAINTED, ("pushed the toy train along the ground", "made the toy train go very fast", "pulled the toy train on a string"), "playing with the toy train"),
    Toy("hat", COLORS, ("wore the hat proudly", "threw the hat up and caught it", "put flowers on the hat"), "playing with the hat"),
    Toy("whistle", ("silver", "wooden", "red", "blue"), ("blew the whistle as loud as possible", "played a song on the whistle", "blew the whistle like a train"), "playing with the whistle"),
    Toy("toy boat", PAINTED, ("pretended to sail the toy boat", "made a harbor for the toy boat", "filled the toy boat with small stones"), "playing with the toy boat"),
    Toy("drum", PAINTED, ("played the drum", "tapped a song on the drum", "marched around with the drum"), "playing the drum"),
    Toy("toy horse", ("white", "brown", "wooden", "black"), ("made the toy horse jump", "gave the toy horse some grass", "built a little farm for the toy horse"), "playing with the toy horse"),
    Toy("shovel", PAINTED, ("dug a deep hole with the shovel", "made a little hill with the shovel", "looked for treasure with the shovel"), "digging"),
)  # fmt: skip

ANIMALS = (
    Animal("puppy", ("brown", "little", "black", "white"), "Woof", "ran", "bread", "its house"),
    Animal("kitten", ("gray", "little", "white", "orange"), "Meow", "crept", "milk", "its house"),
    Animal("bird", ("blue", "little", "yellow", "red"), "Tweet", "hopped", "seeds", "its nest"),
    Animal("rabbit", ("white", "little", "brown", "gray"), "Sniff", "hopped", "carrots", "its hole in the ground"),
    Animal("duck", ("white", "little", "yellow", "brown"), "Quack", "waddled", "bread", "the pond"),
    Animal("frog", ("green", "little", "brown", "funny"), "Croak", "jumped", "flies", "the pond"),
    Animal("squirrel", ("red", "little", "gray", "brown"), "Squeak", "climbed", "nuts", "its tree"),
    Animal("hedgehog", ("brown", "little", "round", "sleepy"), "Sniff", "walked", "apples", "its pile of leaves"),
    Animal("mouse", ("gray", "little", "brown", "white"), "Squeak", "ran", "cheese", "its hole"),
    Animal("turtle", ("green", "little", "brown", "slow"), "Hmm", "walked", "leaves", "the grass by the pond"),
)  # fmt: skip

FOODS = (
    "apple", "cookie", "sandwich", "banana", "cake", "orange", "pear", "muffin", "bun", "pie",
)  # fmt: skip
TREATS = ("cookies", "pancakes", "apple pie", "banana bread", "muffins", "waffles")

MORNINGS = ("One morning", "One day", "One sunny day", "One Sunday", "One warm day", "On Saturday")
