"""Plots with weather and animals: rain on a plan, helping animals, fables, noises in the night."""
# ruff: noqa: E501 (one sentence with its variants to a line reads as the story does)

from llama_jax.data.corpora.tales.plots_together import Story
from llama_jax.data.corpora.tales.teller import Teller, a, tell
from llama_jax.data.corpora.tales.words import ANIMALS, PETS


def rain(t: Teller) -> Story:
    """Weather spoils a plan; the plan is kept in another form, indoors."""
    h, g, f = t.hero, t.grown_up(), t.friend()
    plan, packed, inside, did = t.pick((
        ("have a picnic", "a basket with bread, cheese and apples", "have the picnic on the floor", "put a blanket on the floor and ate bread, cheese and apples"),
        ("go to the beach", "a bucket and a towel", "have a beach in the bathtub", "filled the bathtub and made big waves"),
        ("fly a kite", "a long string and a kite", "make paper birds", "folded paper birds and let them fly down the stairs"),
        ("sleep in a tent", "a lamp and a warm blanket", "make a tent of chairs", "put a big blanket over four chairs and crept in with a lamp"),
        ("look for treasure in the forest", "a map and a small shovel", "hide a treasure in the house", "followed a map from room to room until they found a box of cookies"),
        ("race on the hill", "new running shoes", "have a race for toy cars", "raced toy cars from the kitchen to the door"),
        ("visit the zoo", "a camera and some apples", "make a zoo of toys", "made cages of boxes and put all the toy animals in them"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        f"{t.one('Today', 'On Sunday')}, {h.he} and {h.his} friend {f.call} wanted to {plan}.",
        t.one(f"{h.call} had packed {packed}.", f"They had {packed} ready by the door."),
        t.said(
            h,
            t.one(
                "This will be the best day ever!", "I have waited all week for this!", "Let us go!"
            ),
        ),
    )
    middle = tell(
        t.one("But then the sky turned gray.", "But a big dark cloud came over the house."),
        t.one("Drip, drop! It began to rain.", "Soon the rain fell so hard that the street was like a river."),
        t.one(f"{h.call} looked out of the window and was sad.", f"{h.call} pressed {h.his} nose to the window and began to cry."),
        t.said(h, t.one("Now we cannot go!", f"Now we cannot {plan}.", "Silly rain! Our day is over.")),
        t.said(f, t.one("Maybe it will stop soon.", "I am sad too.")),
        "But the rain did not stop.",
        t.said(g, t.one(f"I have an idea. We can {inside}!", f"Who needs the sun? Let us {inside}!")),
    )  # fmt: skip
    end = tell(
        t.one(f"At first, {h.call} was not sure, but {f.call} liked the idea.", "The two friends looked at each other and smiled."),
        f"They {did}.",
        t.one("It was so much fun that they forgot the rain.", "They laughed so much that they did not hear the rain."),
        t.said(h, t.one("This is even better than our plan!", "I hope that it rains again tomorrow!")),
        t.one("In the evening, the sun came out, and there was a rainbow in the sky.", "When the rain stopped at last, nobody noticed."),
        t.one(f"{h.call} learned that a rainy day can be a good day.", f"That night, {h.call} fell asleep with a smile.", "It was a good day after all."),
    )  # fmt: skip
    return [begin, middle, end]


def animal_help(t: Teller) -> Story:
    """An animal in trouble gets what that trouble needs, and thanks the child in its way."""
    h, g, p = t.hero, t.grown_up(), t.place()
    animal, looks = t.animal()
    name = animal.name
    trouble, need, helped = t.pick((
        ("was stuck under a heavy branch", "lift the branch", "Together, they lifted the branch."),
        ("had a thorn in its foot", "pull out the thorn", "Very gently, they pulled out the thorn."),
        ("was caught in an old net", "cut the net", "They cut the net with care, one string at a time."),
        ("was wet and cold", "make it dry and warm", "They dried it with a soft towel and held it until it was warm."),
        ("was very thirsty", "bring it some water", "They brought it water in a little bowl, and it drank it all."),
        ("was stuck in a deep hole", "get it out with a board", "They put a board into the hole, and it walked up the board."),
        ("had lost its mother", "look for its mother", "They followed a soft sound and found the mother, who was looking for her baby."),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        t.one(f"{h.call} loved all animals.", f"{h.call} liked to be outside."),
        f"{t.day()}, {h.call} and {g.call} went {p.to}.",
        t.pick(p.sights),
        f"Suddenly, {h.call} heard a small sound.",
        t.one(f'"{animal.sound}! {animal.sound}!"', f'"{animal.sound}!" said a tiny voice.'),
    )  # fmt: skip
    middle = tell(
        t.one(f"Soon {h.call} saw {a(looks)} {t.pick(p.spots)}.", f"There, {t.pick(p.spots)}, was {a(looks)}."),
        f"The {name} {trouble}.",
        t.one(f"The poor {name} looked at {h.him} with big eyes.", f"The {name} was afraid."),
        t.said(h, t.one(f"Poor little {name}! We must help it.", f"Do not be afraid, little {name}. We will help you.")),
        t.said(g, t.one(f"You are right. We have to {need}.", f"We can {need}, but we must be gentle.")),
        helped,
    )  # fmt: skip
    end = tell(
        t.one(f"The {name} was so happy!", f"Now the {name} felt much better."),
        f'"{animal.sound}!" it said, and it {animal.moved} around them.',
        f"{h.call} gave it some {animal.food}." if animal.food not in ("flies",) and t.chance(0.6) else "",
        t.one(f"Then the {name} {animal.moved} back to {animal.home}.", f"Then it was time to say goodbye, and the {name} {animal.moved} away."),
        t.said(h, t.one("Goodbye, little friend!", "Take care!", "I hope that we will see it again.")),
        t.one(f"The next day, the {name} was there again and waited for {h.him}.", f"{h.call} went home with a warm heart.", f"{g.Call} was proud of {h.him}."),
    )  # fmt: skip
    return [begin, middle, end]


def fable(t: Teller) -> Story:
    """An animal that works while another plays; in winter the one needs the other."""
    h = t.hero
    kind, lazy_kind = t.two(ANIMALS)
    other = t.friend()
    store, work = t.pick((
        ("nuts", "carried nuts to a safe place"), ("seeds", "picked seeds from the grass"),
        ("berries", "dried berries in the sun"), ("apples", "rolled apples into a hole"),
        ("mushrooms", "hung mushrooms on a string"), ("corn", "brought corn from the field"),
    ))  # fmt: skip
    play = t.one("slept in the sun", "sang songs all day", "danced in the grass", "played in the leaves")  # fmt: skip
    pronoun = "girl" if h.he == "she" else "boy"
    begin = tell(
        t.one(f"Once upon a time, {a(kind.name)} named {h.call} lived in the forest.", f"{h.call} was {a(kind.name)} who lived near a big old tree."),
        f"{h.call} was a good {pronoun}, and {h.he} worked hard.",
        f"It was {t.one('the end of summer', 'autumn')}, and every day {h.he} {work}.",
        f"Next door lived {a(lazy_kind.name)} named {other.call}.",
        f"{other.call} did not work. {other.He} {play}.",
    )  # fmt: skip
    middle = tell(
        f"One day, {other.call} came by.",
        t.said(other, t.one("Why do you work so much? Come and play!", "You are silly! The sun is shining.")),
        t.said(h, t.one("Soon it will be cold, and then there will be no food.", "Winter is coming. You should get some food too.")),
        f"But {other.call} only laughed.",
        t.one("Then the snow came.", "One night, it began to snow."),
        t.one("The whole forest was white and cold.", "There was snow everywhere."),
        f"{h.call} sat in {h.his} warm home and had many {store} to eat." if store != "corn" else f"{h.call} sat in {h.his} warm home and had a lot of corn to eat.",
        f"{other.call} looked for food all day, but {other.he} found nothing.",
    )  # fmt: skip
    end = tell(
        f"At last, {other.call} knocked on {h.call}'s door.",
        t.said(other, t.one("I am so hungry. You were right, and I was wrong.", "Please help me. I have no food.")),
        t.one(f"{h.call} could see that {other.he} was cold.", f"{h.call} felt sorry for {other.him}."),
        t.said(h, t.one(f"Come in. We can share my {store}.", "Come in and get warm. There is food for two.")),
        "All winter, they ate together and told stories.",
        t.one(f"When summer came again, {other.call} worked hard too.", f"The next year, {other.call} helped {h.call} every day."),
        t.one("It is good to work before you play.", "And they were good friends ever after.", "After that, they shared everything."),
    )  # fmt: skip
    return [begin, middle, end]


def night_sound(t: Teller) -> Story:
    """A strange sound has a harmless source, which becomes a pet or a friend."""
    h, g = t.hero, t.grown_up("mom,dad,grandma,grandpa")
    animal = t.pick([x for x in ANIMALS if x.name in ("kitten", "puppy", "mouse", "hedgehog", "bird")])  # fmt: skip
    look = t.pick(animal.looks)
    sound = t.one("Scratch, scratch", "Tap, tap, tap", "Bump, bump", "Rustle, rustle")
    where = t.one("under the bed", "behind the door", "outside the window", "under the stairs", "in the closet")  # fmt: skip
    name = t.pick(PETS)
    begin = tell(
        t.opening(),
        t.one(f"One night, {h.he} could not sleep.", f"One night, {h.he} woke up."),
        t.one("The house was dark and quiet.", "The moon was shining into the room."),
        f"Then there was a sound. {sound}!",
        f"It came from somewhere {where}.",
        t.one(f"{h.call} pulled the blanket over {h.his} head.", f"{h.call} sat up in bed and held {h.his} pillow tight."),
    )  # fmt: skip
    middle = tell(
        "Then the sound stopped.",
        t.said(h, t.one("Is it a monster?", "Who is there?", "Maybe it is a ghost!")),
        f"{sound}! There it was again.",
        f"{h.call} ran to {g.call}.",
        t.said(h, f"There is something {where}!"),
        t.said(g, t.one("Let us look together.", "I will take the lamp, and you take my hand.")),
        t.one("Slowly, they went back.", "Step by step, they came closer."),
        t.one(f"{h.call}'s heart beat fast.", f"{h.call} was scared, but {h.he} was brave."),
        f"They held up the lamp and looked {where}.",
    )  # fmt: skip
    end = tell(
        f"It was {a(f'{look} {animal.name}')}!",
        f'"{animal.sound}," it said.',
        t.said(h, t.one("It is not a monster at all!", f"Oh! It is only {a(animal.name)}!")),
        t.one(f"The {animal.name} was cold and hungry.", f"The {animal.name} was more afraid than {h.call}."),
        f"They gave it some {animal.food} and made a bed for it in a box.",
        t.one(f"{h.call} named it {name}.", f"In the morning, {h.call} gave it a name: {name}."),
        t.one(f"From then on, {name} came to see {h.him} every day.", f"After that night, {h.call} was not afraid of strange sounds anymore.", f"{h.call} and {name} became best friends."),
    )  # fmt: skip
    return [begin, middle, end]


def race(t: Teller) -> Story:
    """The fast one stops for a reason; the slow one goes on and wins."""
    h, other = t.hero, t.friend()
    fast = t.pick([x for x in ANIMALS if x.name in ("rabbit", "puppy", "kitten", "squirrel")])
    slow = t.pick([x for x in ANIMALS if x.name in ("turtle", "hedgehog", "duck", "frog")])
    goal = t.one(
        "the big tree", "the lake", "the old bridge", "the top of the hill", "the red barn"
    )
    stop, waste = t.pick((
        ("lay down under a tree and fell asleep", "When {he} woke up, it was too late"),
        ("saw some sweet berries and ate them all", "When {he} was full, it was too late"),
        ("met some friends and told them a long story", "When the story was over, it was too late"),
        ("went to the river to look at {his} own face", "When {he} looked up, it was too late"),
        ("began to chase a butterfly", "When the butterfly was gone, it was too late"),
    ))  # fmt: skip
    pronouns = {"he": other.he, "his": other.his}
    begin = tell(
        t.one(f"Once upon a time, there was {a(slow.name)} named {h.call}.", f"{h.call} was {a(slow.name)} with short legs."),
        f"{h.call} was kind, but {h.he} was very slow.",
        f"{t.one('Near the pond', 'In the same forest', 'In the next field')} lived {a(fast.name)} named {other.call}, who was very fast.",
        f"{other.call} liked to laugh at {h.call}.",
        t.said(other, t.one("You are so slow! Do you ever get anywhere?", "I could run around the forest before you take ten steps!")),
    )  # fmt: skip
    middle = tell(
        t.one(f"But {h.call} was not angry.", f"One day, {h.call} had enough of it."),
        t.said(h, t.one(f"Let us have a race to {goal}.", f"I will race you to {goal}.")),
        f"{other.call} laughed so much that {other.he} fell over.",
        "All the animals came to watch. One, two, three, go!",
        f"{other.call} ran away like the wind.",
        f"{h.call} went slowly, step by step.",
        t.said(other, t.one(f"Look how far behind {h.call} is! I have a lot of time.", "This is too easy!")),
        f"So {other.he} {stop.format(**pronouns)}.",
        f"{h.call} did not stop. {h.He} was tired, but {h.he} went on and on.",
    )  # fmt: skip
    end = tell(
        f"{waste.format(**pronouns)}.",
        f"{other.call} ran as fast as possible, but {h.call} was already at {goal}!",
        t.one('All the animals shouted, "Hooray!"', f"All the animals clapped for {h.call}."),
        f"{other.call} looked at the ground.",
        t.said(other, t.one("I am sorry that I laughed at you.", "You won. I will never laugh at you again.")),
        t.said(h, t.one("It is all right. We can be friends.", "Thank you. It was a good race.")),
        t.one("Slow and steady wins the race.", f"After that, {other.call} and {h.call} went for a walk together every day, and {other.call} went slowly."),
    )  # fmt: skip
    return [begin, middle, end]
