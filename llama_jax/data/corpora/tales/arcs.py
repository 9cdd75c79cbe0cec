"""Story arcs: for each mood, events that can happen to a child, an animal and a toy.

Sentences have slots: {h} the hero's name, {he} {him} {his} {He} {His} {kid} what goes with it;
{an} an animal with its article (`a little frog`), {animal} its name, {sound} {moved} {food} what
goes with that; {toy} {thing} {a_thing} the same toy in three ways (`ball`, `red ball`,
`a red ball`); {parent} a relative. Any way to say a part fits any way to say the others, and a
story stays whole when its less important parts are left out (see `answers`): an arc with the
event and the close alone is a story.
"""
# ruff: noqa: E501 (one part with its variants to a line reads as the story does)

from typing import NamedTuple


class Arc(NamedTuple):
    """One course of events; `cast` says which characters it needs, `owned` what the hero has at
    first."""

    mood: str
    cast: tuple[str, ...]
    """Those of animal and toy that take part."""
    owned: str
    """animal, toy or nothing."""
    event: tuple[str, ...]
    """What happens; a clause that follows `One day, at the lake,` and ends without a stop."""
    detail: tuple[str, ...]
    turn: tuple[str, ...]
    result: tuple[str, ...]
    close: tuple[str, ...]
    """The last sentence if no other end is wished for; shows the mood twice."""


ANIMAL, TOY, BOTH = ("animal",), ("toy",), ("animal", "toy")

ARCS = (
    # Happy
    Arc(
        "happy", ANIMAL, "",
        ("{he} met {an} that wanted to play", "{an} came and looked at {him}", "{he} made friends with {an}"),
        ('"{sound}! {sound}!" said the {animal}.', "The {animal} {moved} around {him} two times."),
        ("{h} gave it some {food}, and it ate everything.", "They played hide and seek until they were tired."),
        ("After that, the {animal} did not want to leave.", "Then the {animal} sat down right next to {him}."),
        ("{h} was happy to have a new friend and smiled all day.", "They were both happy, and {h} smiled all the way home.", "{h} smiled, because {he} was happy to have a friend."),
    ),
    Arc(
        "happy", ANIMAL, "",
        ("{he} found {an} that was stuck under a branch", "a branch fell down, and {an} was stuck under it"),
        ('"I will help you," said {h}.', "It looked at {him} with big eyes."),
        ("{h} lifted the branch with both hands.", "{h} and {his} {parent} lifted the branch together."),
        ("The {animal} {moved} out and was free.", "Now the {animal} could move again."),
        ("The {animal} was so happy that {h} smiled.", "{h} was glad to help and smiled at the {animal}."),
    ),
    Arc(
        "happy", TOY, "toy",
        ("{he} {played}", "everyone wanted to see the {toy}"),
        ("The sun was warm, and the sky was blue.", "It was the best game in the world."),
        ("Then a new child came, and {h} shared the {toy}.", "{h} let a small child play with the {toy} too."),
        ("They played until the sun went down.", "Soon they played together like old friends."),
        ("{h} was happy and smiled all day long.", "What a happy day it was, and how {h} smiled!"),
    ),
    Arc(
        "happy", TOY, "",
        ("{he} found {a_thing} and gave it back to the child who had lost it", "{he} saw {a_thing} and took it to the child who had lost it"),
        ('"Is this your {toy}?" asked {h}.', '"Thank you so much!" said the child.'),
        ("The child let {h} play with the {toy} too.", "Then {h} and the child played with the {toy} together."),
        ("They had a lot of fun.", "They played until the sun went down."),
        ("{h} smiled, because it made {him} happy to be kind.", "{h} was happy to help and smiled all the way home."),
    ),
    Arc(
        "happy", BOTH, "toy",
        ("{an} came and wanted to play with the {toy}", "{he} showed the {toy} to {an}"),
        ('"{sound}! {sound}!" said the {animal}.', '"Do you want to play?" asked {h}.'),
        ("{h} and the {animal} played together again and again.", "The {animal} looked at the {toy} and {moved} around it."),
        ("They played until the sun went down.", "It was the best game of all."),
        ("They were both happy, and {h} smiled all day.", "{h} was happy with such a good friend and smiled."),
    ),
    Arc(
        "happy", BOTH, "toy",
        ("{he} lost the {toy}, but {an} found it", "{an} found the {toy} that {he} had lost"),
        ("It was behind a big rock.", "It was under a pile of leaves."),
        ('"Thank you!" said {h} to the {animal}.', "{h} gave the {animal} some {food} to say thank you."),
        ("After that, they played together.", "Then the {animal} {moved} around {him} and the {toy}."),
        ("{h} had the {toy} back and was so happy that {he} smiled.", "{h} smiled and was happy to have such a friend."),
    ),
    # Sad
    Arc(
        "sad", ANIMAL, "animal",
        ("the {animal} {moved} away and did not come back", "{he} turned around, and the {animal} was gone"),
        ("{h} called and called, but it did not come.", "{He} looked behind every tree."),
        ("{h} sat down and began to cry.", "Tears ran down the face of {h}."),
        ("{His} {parent} looked too, but it was no use.", "The sun went down, and the {animal} was still gone."),
        ("{h} was sad and cried all night.", "{h} missed the {animal} and was very sad."),
    ),
    Arc(
        "sad", ANIMAL, "",
        ("{he} had to say goodbye to {an}", "it was time to say goodbye to {an}"),
        ("The {animal} had a new home far away.", "They had been friends all summer."),
        ('"Please stay a little longer," said {h}.', "{h} held it one last time."),
        ("The {animal} looked back at {him} one more time.", "Then the {animal} {moved} away."),
        ("{h} cried and was sad for a long time.", "{h} was sad, and there were tears in {his} eyes."),
    ),
    Arc(
        "sad", TOY, "toy",
        ("{he} lost the {toy}", "{he} put the {toy} down and could not find it again"),
        ("{He} looked everywhere, but it was gone.", "Nobody had seen it."),
        ("{h} sat down and began to cry.", '"Where can it be?" cried {h}.'),
        ("{His} {parent} helped {him} look, but they did not find it.", "Then the sun went down, and {he} had to go."),
        ("{h} went home without the {toy} and cried, sad and tired.", "{h} was sad and missed the {toy} very much."),
    ),
    Arc(
        "sad", TOY, "toy",
        ("the {toy} fell into a deep hole", "{he} dropped the {toy} into a deep hole"),
        ("The hole was too deep for {his} arm.", "{He} could see it, but {he} could not reach it."),
        ("{h} tried to get it with a long stick, but it did not help.", "{h} called for help, but nobody came."),
        ("At last, {he} had to give up.", "Then it began to rain, and the hole was full of water."),
        ("{h} cried and said a sad goodbye to the {toy}.", "{h} was so sad that {he} cried all evening."),
    ),
    Arc(
        "sad", BOTH, "toy",
        ("{an} took the {toy} and {moved} away", "{an} came by and took the {toy} away"),
        ('"Please come back!" shouted {h}.', "{h} went after it as fast as possible."),
        ("The {animal} was gone, and so was the {toy}.", "{h} looked everywhere, but {he} never saw the {toy} again."),
        ("{He} sat down on a stone.", "Then it began to rain."),
        ("{h} cried and was very sad.", "{h} went home with tears in {his} eyes and was sad."),
    ),
    Arc(
        "sad", BOTH, "toy",
        ("{he} met {an} that was sad and alone", "{he} saw {an} that sat alone and looked sad"),
        ("It had lost its mother.", "It did not even look up."),
        ("{h} gave it the {toy}, but it did not want to play.", "{h} showed it the {toy}, but it closed its eyes."),
        ("{He} stayed with the {animal} until it was time to go.", "Then it began to rain."),
        ("{h} was sad too, and {he} cried on the way home.", "That made {h} sad, and a tear fell on the {toy}."),
    ),
    # Funny
    Arc(
        "funny", ANIMAL, "",
        ("{an} came by with a pot on its head", "{he} saw {an} with a pot on its head"),
        ("It {moved} left and right and could not see a thing.", 'It bumped into a tree and said, "{sound}!"'),
        ("{h} laughed so much that {he} fell over.", "{h} laughed until {he} could not stand."),
        ("Then {he} took the pot off its head.", "Then {he} put the pot on {his} own head."),
        ("What a silly {animal}, and how {h} laughed!", "It was so funny that {h} giggled all day.", "{h} laughed about the silly {animal} all the way home."),
    ),
    Arc(
        "funny", ANIMAL, "",
        ("{an} tried to dance on one leg", "{he} saw {an} that tried to dance on one leg"),
        ("It fell down, got up, and fell down again.", '"{sound}!" it said, and went on.'),
        ("{h} tried it too and fell into the mud.", "{h} danced with it and sat down in a puddle."),
        ("Soon everyone came to look.", "The {animal} looked at {him} as if {he} was a pig."),
        ("They looked so silly that {h} laughed and laughed.", "{h} giggled, because it was all so funny."),
    ),
    Arc(
        "funny", TOY, "toy",
        ("{he} put the {toy} on {his} head and walked around", "{he} walked around with the {toy} on {his} head"),
        ("Everyone looked at {him}.", '"Make way for me!" shouted {h}.'),
        ("Then the {toy} fell on the nose of a man who was asleep.", "The {toy} fell off and woke up a man who was asleep."),
        ('"Is it raining {toy}s?" asked the man.', '"Good morning, little {toy}," said the man.'),
        ("It was so silly that {h} laughed and laughed.", "{h} giggled about this funny day all evening."),
    ),
    Arc(
        "funny", TOY, "toy",
        ("{he} asked the {toy} a silly question", "{he} talked to the {toy} in a silly voice"),
        ('"Are you hungry, little {toy}?" asked {h}.', '"Why do you never say a word?" asked {h}.'),
        ("{His} {parent} hid behind {him} and answered.", '"I am too hungry to talk!" said {his} {parent} from behind a tree.'),
        ("{h} jumped into the air and turned around.", "{h} was so surprised that {he} sat down."),
        ("It was so funny that {h} laughed all day.", "{h} giggled, because it was a good joke."),
    ),
    Arc(
        "funny", BOTH, "toy",
        ("{an} sat down on the {toy} and did not get up", "{an} thought that the {toy} was a chair and sat on it"),
        ('"{sound}," it said, and that was all.', '"Please get up," said {h}.'),
        ("{h} sang and jumped, but the {animal} only looked at {him}.", "{h} made a face, and the {animal} made a face too."),
        ("Then {he} held up some {food}, and it got up at once.", "After an hour, it got up and {moved} away."),
        ("What a silly {animal}, and how {h} laughed!", "{h} laughed, because the {animal} looked so funny."),
    ),
    Arc(
        "funny", BOTH, "toy",
        ("the {toy} began to move, and behind it was {an}", "{he} saw the {toy} move, because {an} pushed it"),
        ('"Can a {toy} walk?" asked {h}.', '"{sound}!" said the {toy}, or so it seemed.'),
        ("{h} ran after the {toy} and fell over {his} own feet.", "{h} ran left and the {toy} went right."),
        ("The {animal} looked up and was as surprised as {h}.", "Then the {animal} {moved} out and sat on {his} foot."),
        ("It was so silly that {h} laughed and laughed.", "{h} giggled about the funny {animal} all the way home."),
    ),
    # Scary
    Arc(
        "scary", ANIMAL, "",
        ("a dark shadow moved, but it was only {an}", "{he} was afraid of a shadow, but it was only {an}"),
        ("{His} heart beat fast.", '"Who is there?" asked {h}.'),
        ("{h} was so scared that {he} shook like a leaf.", "{h} took one step back, and then one more."),
        ('"{sound}," said the {animal} in the dark.', "The {animal} was just as afraid of {him}."),
        ("{h} was scared all the way home.", "Still, {h} was so afraid that {he} ran home.", "It was a scary night, and {h} never forgot it."),
    ),
    Arc(
        "scary", ANIMAL, "animal",
        ("a big storm came, and it got very dark", "the sky got dark, and a storm began"),
        ("The thunder was so loud that the {animal} hid.", "The wind pulled at the trees."),
        ("{h} held the {animal} tight and was afraid.", "{h} and the {animal} hid under a bush, scared and wet."),
        ("There was a light in the sky, and then a loud boom.", "The rain fell and fell."),
        ("{h} was scared until the storm was over.", "It was a scary night, and {h} never forgot it."),
    ),
    Arc(
        "scary", TOY, "toy",
        ("the {toy} moved all by itself in the dark", "{he} saw the {toy} move in the dark"),
        ("Nobody had touched it.", "There was no wind at all."),
        ("{h} was too scared to move.", "{h} was afraid and hid behind a tree."),
        ("There it was again, one step closer!", "Then something went tap, tap, tap."),
        ("{h} was so scared that {he} ran home.", "It was scary, and {h} shook all night."),
    ),
    Arc(
        "scary", TOY, "toy",
        ("the {toy} fell into a dark cave", "{he} dropped the {toy} in a dark cave"),
        ("It was cold in there, and something moved.", '"Hoo!" said something in the cave.'),
        ("{h} was scared, but {he} went in step by step.", "{h} was afraid, but {he} wanted the {toy} back."),
        ("Two yellow eyes looked at {him}.", "Something touched {his} hand."),
        ("{h} took the {toy} and ran home, scared and cold.", "It was so scary that {h} shook all night."),
    ),
    Arc(
        "scary", BOTH, "toy",
        ("something in the dark took the {toy}, and it was {an}", "{an} came out of the dark and took the {toy}"),
        ("Its eyes were like two little lamps.", '"Who are you?" asked {h}.'),
        ("{h} screamed, and the {animal} dropped the {toy}.", "{h} was too scared to say a word."),
        ("Then all was black again.", "There was a loud boom in the sky."),
        ("{h} was so scared that {he} ran home.", "It was scary, and {h} shook all night."),
    ),
    Arc(
        "scary", BOTH, "toy",
        ("{an} jumped out of the dark, and {he} dropped the {toy}", "{he} dropped the {toy}, because {an} moved in the dark"),
        ("{His} heart beat fast.", "It looked as big as a house."),
        ("{h} was so scared that {he} hid behind a tree.", "{h} was afraid and did not move at all."),
        ("The {animal} came closer, step by step.", '"{sound}!" it said, and its eyes were red.'),
        ("{h} took the {toy} and ran home, still scared.", "It was a scary night, and {h} never forgot it."),
    ),
    # Quiet
    Arc(
        "quiet", ANIMAL, "",
        ("{he} sat down quietly next to {an}", "{he} found {an} in the soft grass"),
        ("Nobody said a word.", "The sky was blue and calm."),
        ("{h} touched it gently with one finger.", "{h} and the {animal} listened to the wind."),
        ("The clouds went by slowly, one by one.", "The {animal} closed one eye, and then the other."),
        ("It was a calm and quiet day for {h}.", "{h} closed {his} eyes, and all was calm and quiet."),
    ),
    Arc(
        "quiet", ANIMAL, "animal",
        ("{he} lay down in the soft grass with the {animal}", "{he} sat down in a quiet spot with the {animal}"),
        ("The sun was low, and the air was calm.", "Nobody said a word."),
        ("{h} told the {animal} a long, quiet story.", "{h} looked at the clouds, and the {animal} ate some {food}."),
        ("A leaf fell slowly to the ground.", "The {animal} put its head on {his} hand."),
        ("Then {h} walked home slowly, and all was quiet.", "It was calm and quiet, just as {h} liked it."),
    ),
    Arc(
        "quiet", TOY, "toy",
        ("{he} lay down in the soft grass with the {toy}", "{he} put the {toy} in the soft grass and lay down"),
        ("The sky was blue, and the wind was calm.", "Nobody said a word."),
        ("{h} looked at the clouds and gave them names.", "{h} listened to the leaves."),
        ("A leaf fell slowly to the ground.", "The clouds went by slowly, one by one."),
        ("It was a calm and quiet day for {h}.", "{h} closed {his} eyes, and all was calm and quiet."),
    ),
    Arc(
        "quiet", TOY, "toy",
        ("{he} told the {toy} a quiet story", "{he} sat in a quiet spot and told the {toy} a story"),
        ("Far away, a bell rang softly.", "It was a story about the moon."),
        ("{h} held the {toy} and spoke softly.", "{h} thought about every word."),
        ("The sun went down slowly behind the trees.", "One star came out, and then one more."),
        ("Then {h} walked home slowly, and all was quiet.", "It was calm and quiet, just as {h} liked it."),
    ),
    Arc(
        "quiet", BOTH, "toy",
        ("{an} came and lay down quietly next to the {toy}", "{he} sat with the {toy}, and {an} came quietly"),
        ("The wind was soft.", "Nobody said a word."),
        ("{h} patted the {animal} gently.", "{h} and the {animal} looked at the clouds."),
        ("The {animal} closed one eye, and then the other.", "The sun went down slowly behind the trees."),
        ("It was a calm and quiet day for {h}.", "{h} closed {his} eyes, and all was calm and quiet."),
    ),
    Arc(
        "quiet", BOTH, "toy",
        ("{he} gently put the {toy} next to {an}", "{he} put the {toy} down softly, because {an} slept there"),
        ("A soft wind went through the leaves.", "The air was warm and calm."),
        ('"Sleep well, little friend," said {h} softly.', "{h} sat down and did not make a sound."),
        ("One star came out, and then one more.", "The {animal} moved closer to the {toy}."),
        ("Then {h} walked home slowly, and all was quiet.", "It was calm and quiet, just as {h} liked it."),
    ),
)  # fmt: skip

OPENS = {
    "": ("Once there was a little {kid} named {h}.", "Once upon a time, there was a {kid} named {h}.", "{h} was a little {kid}.", "There once was a {kid} called {h}."),
    "toy": ("Once there was a {kid} named {h} who had {a_thing}.", "{h} was a little {kid} who loved {his} {thing}.", "Once upon a time, a {kid} named {h} got {a_thing}."),
    "animal": ("Once there was a {kid} named {h} who had {an}.", "{h} was a little {kid} who loved {his} {young}.", "Once upon a time, a {kid} named {h} had {an}."),
}  # fmt: skip
"""The first sentence, by what the hero owns."""

GOINGS = {
    "": ("{day}, {he} went {to}.", "{day}, {h} went {to} with {his} {parent}.", "{day}, {h} went {to}."),
    "toy": ("{day}, {he} took the {toy} {to}.", "{day}, {h} went {to} with the {toy}.", "{day}, {he} went {to}."),
    "animal": ("{day}, they went {to}.", "{day}, {h} took the {animal} {to}.", "{day}, they went {to} together."),
}  # fmt: skip
"""Ways to come to the place, as a sentence of its own."""

LEADS = ("{day}, {at}, ", "{day}, {he} went {to}, and there ")
"""Openings of the event that also say where it happens, ..."""
LATER_LEADS = ("There, ", "Soon, ", "Then ")
"""... and those for when the sentence before has said it."""

DAYS = {
    "happy": ("One day", "One sunny day", "One morning", "On Saturday"),
    "sad": ("One day", "One gray day", "One morning", "On Sunday"),
    "funny": ("One day", "One sunny day", "One morning", "On Saturday"),
    "scary": ("One night", "One evening", "Late one night"),
    "quiet": ("One day", "One evening", "One warm day", "On Sunday"),
}

ENDS = {
    "hug": ("{his} {parent} gave {him} a big hug", "{h} got a hug from {his} {parent}"),
    "song": ("{h} sang a little song", "{h} and {his} {parent} sang a song"),
    "dance": ("{h} danced in a circle", "{h} and {his} {parent} danced"),
    "nap": ("{h} lay down and took a nap", "{h} took a long nap"),
    "cake": ("{h} ate a piece of cake", "{his} {parent} gave {him} some cake"),
    "rainbow": ("a rainbow came out", "there was a rainbow in the sky"),
    "kiss": ("{his} {parent} gave {him} a kiss", "{h} got a kiss from {his} {parent}"),
    "place": ("{h} walked {end_to}", "{h} sat down {end_at}"),
}
"""The last sentence if an end is wished for, without its mood."""

TAILS = {
    "happy": ("and {he} was happy and smiled", "and everyone was glad and smiled"),
    "sad": ("but {he} was still sad and cried", "but there were sad tears in {his} eyes"),
    "funny": (
        "and {he} laughed about the silly day",
        "and everyone laughed, because it was so funny",
    ),
    "scary": ("but {he} was still scared and shook", "but {he} was still afraid of the dark"),
    "quiet": ("and everything was calm and quiet", "and the evening was soft and quiet"),
}
"""Gives such a last sentence its mood, twice."""
