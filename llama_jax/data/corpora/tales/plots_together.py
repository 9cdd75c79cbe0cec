"""Plots between children: losing and finding, sharing, gifts, new friends, building."""
# ruff: noqa: E501 (one sentence with its variants to a line reads as the story does)

from llama_jax.data.corpora.tales.teller import Teller, a, tell
from llama_jax.data.corpora.tales.words import COLORS, FOODS, TOYS

Story = list[str]
"""Paragraphs."""


def lost_and_found(t: Teller) -> Story:
    """The toy is put down in one spot; whoever saw it there helps to find it there."""
    h, f, p = t.hero, t.friend(), t.place()
    toy, thing = t.toy()
    right, wrong = t.two(p.spots)
    pastime, together = t.pick(p.pastimes), t.chance(0.5)
    begin = tell(
        t.opening(),
        t.one(f"{h.call} had {a(thing)}.", f"{h.call} loved {h.his} {thing} very much.", f"{h.His} favorite thing was {a(thing)}."),
        f"{t.day()}, {h.call} and {h.his} friend {f.call} went {p.to}." if together else f"{t.day()}, {h.call} went {p.to}.",
        t.pick(p.sights),
        t.one(f"{h.call} had the {toy.name} in {h.his} bag.", f"The {toy.name} came along, of course."),
    )  # fmt: skip
    middle = tell(
        "" if together else f"{h.His} friend {f.call} was there too.",
        f"First, {h.call} {t.pick(toy.played)}.",
        t.one(f"Then {h.he} put the {toy.name} down {right}, because {h.he} wanted to play with {f.call}.", f"After a while, {h.he} left the {toy.name} {right} and ran to {f.call}."),
        f"The two friends {pastime}.",
        t.one("They had so much fun!", "They laughed a lot.", "It was great fun."),
    )  # fmt: skip
    search = tell(
        t.one(f"When it was time to go home, {h.call} could not find the {toy.name}.", f"Later, {h.call} looked for the {toy.name}, but it was not in {h.his} bag."),
        t.said(h, t.one(f"Oh no! Where is my {toy.name}?", f"My {thing} is gone!", f"I lost my {toy.name}!")),
        t.one(f"{h.call} was very sad.", f"{h.call} began to cry.", f"{h.call} felt sad and a little scared."),
        f"First, {h.he} looked {wrong}, but it was not there.",
        t.said(f, t.one("Do not cry. I will help you.", "Let us look for it together.", "Think! Where did you play with it?")),
    )  # fmt: skip
    end = tell(
        t.one(f"Then {f.call} remembered that {h.call} had put it down {right}.", f"But {f.call} had seen {h.call} put it down {right}."),
        f"They ran to look, and there was the {thing}!",
        t.said(h, t.one("Thank you! You are a good friend.", f"You found it! Thank you, {f.call}!", "Hooray! Thank you for helping me!")),
        t.one(f"{h.call} hugged the {toy.name} and smiled.", f"{h.call} was happy again."),
        t.one(f"From that day on, {h.he} always put {h.his} things back in {h.his} bag.", "The two friends went home together, happy and tired.", f"After that, {h.call} took good care of the {toy.name}."),
    )  # fmt: skip
    return [begin, middle, search, end]


def sharing(t: Teller) -> Story:
    """Food is shared with a friend who has none; the friend shares something back."""
    h, f, p = t.hero, t.friend(), t.place()
    food, other = t.two(FOODS)
    toy, thing = t.toy()
    why = t.one("had forgotten lunch at home", "had dropped lunch in the mud", "had no food at all")
    begin = tell(
        t.opening(),
        f"{t.day()}, {h.call} went {p.to}.",
        t.pick(p.sights),
        t.one(f"{h.His} {t.pick(('mom', 'dad', 'grandma'))} had put {a(f'big {food}')} in {h.his} bag.", f"{h.call} had {a(f'big {food}')} for lunch."),
        f"{h.call} {t.pick(p.pastimes)} until {h.he} was hungry.",
    )  # fmt: skip
    middle = tell(
        f"At last, {h.call} sat down to eat the {food}.",
        f"Then {h.he} saw a {'girl' if f.he == 'she' else 'boy'} named {f.call}.",
        t.one(f"{f.call} looked sad.", f"{f.call} was sitting alone."),
        t.said(h, "What is wrong?"),
        f"{f.call} {why}.",
        t.said(f, t.one("I am so hungry.", "Now I have nothing to eat.")),
        t.one(f"{h.call} looked at the {food}. It smelled so good!", f"{h.call} wanted to eat the whole {food}.", f"First, {h.call} did not want to share."),
        t.one(f"But {h.he} did not want {f.call} to be hungry.", f"But then {h.he} thought about how {f.call} felt."),
    )  # fmt: skip
    end = tell(
        t.one(f"So {h.he} cut the {food} into two parts and gave one to {f.call}.", f"So {h.call} gave half of the {food} to {f.call}."),
        t.said(f, t.one("Thank you! You are so kind.", "This is the best food ever! Thank you!")),
        f"They ate together, and the {food} tasted even better.",
        t.one(f"Then {f.call} took out {a(thing)} and said that they could both play with it.", f"Then {f.call} let {h.call} play with {f.his} {thing}."),
        f"{t.one('All afternoon', 'For a long time')}, they had fun {toy.playing}.",
        t.one(f"The next day, {f.call} brought {a(other)} and shared it with {h.call}.", f"{h.call} was happy, because sharing had made a new friend.", f"{h.call} learned that sharing makes two people happy."),
    )  # fmt: skip
    return [begin, middle, end]


def gift(t: Teller) -> Story:
    """A present is made by hand, kept secret, and used by the one who gets it."""
    h, g = t.hero, t.grown_up("mom,dad,grandma,grandpa,aunt,uncle")
    what, made, used = t.pick((
        ("card", "folded some paper and drew a big heart on it", "put the card on the table, where everyone could see it"),
        ("necklace", "put beads on a long string, one by one", "put on the necklace at once"),
        ("picture", "painted the house, the sun and the whole family", "hung the picture on the wall"),
        ("cake", "mixed flour, eggs and sugar in a big bowl", "ate two pieces of the cake"),
        ("bag", "cut a piece of cloth and sewed it with care", "carried the bag everywhere"),
        ("bird house", "painted four pieces of wood, and a neighbor put them together", "hung the bird house in a tree"),
        ("song", "wrote the words and sang them again and again", "asked to hear the song two more times"),
        ("cup", "made it of clay and let it dry in the sun", "drank tea from the cup every morning"),
    ))  # fmt: skip
    color = t.pick(COLORS)
    begin = tell(
        t.opening(),
        f"{t.one('Tomorrow was', 'It was almost')} the birthday of {g.call}.",
        t.one(f"{h.call} wanted to give {g.him} something special.", f"{h.call} loved {g.call} and wanted to find a gift."),
        t.one(f"But {h.he} had only two coins.", f"But {h.he} had no money."),
        t.said(h, t.one("What can I do?", "How can I get a gift?", "I wish I had more money.")),
    )  # fmt: skip
    middle = tell(
        t.one(f"For a long time, {h.call} sat on {h.his} bed and thought.", f"Slowly, {h.call} walked around the house and thought."),
        f"Then {h.he} had an idea. {h.He} would make {a(what)}!",
        f"{h.call} went to {'the kitchen' if what == 'cake' else f'{h.his} room'} and closed the door.",
        f"{h.call} {made}.",
        t.one("It was hard work, but it was fun.", "It took all day.", f"{h.call} worked until it was just right."),
        t.one(f"{g.Call} knocked on the door, but {h.call} said, \"Do not come in! It is a secret.\"", f"When {g.call} called, {h.call} hid everything under the bed.") if what not in ("cake", "song") else f"It was a secret, so {h.call} did not tell anyone.",
    )  # fmt: skip
    wrapped = (
        ""
        if what in ("song", "cake", "card", "bird house")
        else f"It was in a box with {a(color)} ribbon."
    )
    end = tell(
        f"The next morning, {h.call} ran to {g.call}.",
        t.said(h, t.one("Happy birthday! This is for you.", "Happy birthday! I made something for you.", f"I have a surprise for you! It is {a(what)}.")),
        wrapped,
        t.one(f"{g.Call} was so surprised!", f"{g.Call} smiled a big smile."),
        t.said(g, t.one("You made this? It is beautiful!", "This is the best gift of all.", f"Thank you, {h.call}! I love it.")),
        f"{g.Call} {used}.",
        t.one(f"{h.call} felt warm and happy.", f"{h.call} was very proud.", f"{h.call} learned that a gift made with love is the best gift."),
    )  # fmt: skip
    return [begin, middle, end]


def new_friend(t: Teller) -> Story:
    """A shy child is asked to join, and both love the same thing."""
    h, f, p = t.hero, t.friend(), t.place()
    toy, thing = t.toy()
    child = f"new {'girl' if f.he == 'she' else 'boy'}"
    newcomer = f._replace(call=f"the {child}")  # until we are told the name
    question, answer = t.pick((
        ("Will you come again tomorrow?", "Yes, I will!"),
        ("I am so glad that you said hello!", "Me too. See you tomorrow!"),
        ("Can we be friends?", "We are friends already!"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        f"{h.call} liked {toy.playing}.",
        f"{t.day()}, {h.call} took {h.his} {thing} {p.to}.",
        t.pick(p.sights),
    )
    middle = tell(
        f"A {child} was standing there alone.",
        t.one(f"{f.He} did not know anyone.", f"{f.He} looked shy and a little sad."),
        t.one(f"{h.call} wanted to say hello, but {h.he} was shy too.", f"{h.call} thought, \"I do not like to be alone. Maybe we can be friends.\""),
        t.one(f"{h.call} walked over and smiled.", f"At last, {h.call} went over."),
        t.said(h, f"Hi! I am {h.call}. What is your name?"),
        t.said(newcomer, t.one(f"My name is {f.call}.", f"I am {f.call}. I just moved here.")),
        t.said(h, t.one("Do you want to play with me?", f"Do you like {toy.playing}?")),
        t.one(f"{f.call} nodded and smiled.", f"{f.call} looked at the {toy.name} and smiled for the first time."),
        t.said(f, t.one(f"I have {a(toy.name)} at home too! I love it.", "Yes, please! That is what I like best.")),
    )  # fmt: skip
    end = tell(
        f"First, {h.call} {t.pick(toy.played)}. Then it was {f.call}'s turn.",
        f"After that, they {t.pick(p.pastimes)}.",
        t.one("They laughed and talked all day.", "They had so much fun that they forgot the time."),
        t.said(f, question),
        t.said(h, answer),
        t.one(f"From that day on, {h.call} and {f.call} were best friends.", f"{f.call} was not alone anymore.", f"{h.call} went home happy, because {h.he} had a new friend."),
    )  # fmt: skip
    return [begin, middle, end]


def building(t: Teller) -> Story:
    """What was built falls for a reason, and is rebuilt so that the reason no longer holds."""
    h, f = t.hero, t.friend()
    what, where, of, fell, better, stands = t.pick((
        ("sand castle", "at the beach", "wet sand", "a big wave came and washed it away", "build it far from the water", "The waves could not reach it"),
        ("tower", "on the floor of the living room", "blocks", "the tower was too thin, so it fell down", "put the big blocks at the bottom", "The tower did not even shake"),
        ("tent", "in the yard", "sticks and a blanket", "the wind blew the blanket away", "put heavy stones on the blanket", "The wind blew, but the blanket did not move"),
        ("snowman", "in front of the house", "snow", "the sun melted its head", "build it in the shade of the house", "The sun could not melt it"),
        ("little boat", "by the lake", "paper", "the paper got wet and the boat sank", "make it of wood", "The wooden boat did not sink"),
        ("bridge", "over a little stream", "small sticks", "the water took the sticks away", "use a long, strong board", "The water ran under the board"),
        ("tree house", "in the big tree", "old boxes", "the rain made the boxes soft, and they fell", "ask for some strong wood", "The rain could not hurt it"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        t.one(f"{h.call} had a good friend named {f.call}.", f"{h.His} best friend was {f.call}."),
        f"{t.one('One day', 'One afternoon', 'On Saturday')}, they wanted to build {a(what)} {where}.",
        t.said(h, t.one("It will be the best one ever!", f"Let us make it of {of}!", "Let us make it very big!")),
    )  # fmt: skip
    middle = tell(
        f"They worked hard, and they made it of {of}.",
        t.one(f"{h.call} worked on one side and {f.call} on the other side.", "It took a long time."),
        t.one("When it was done, they danced around it.", "It looked great!"),
        f"But then {fell}.",
        t.one(f"{h.call} was so angry that {h.he} wanted to go home.", f"{h.call} sat down and cried.", f"{h.call} was very sad."),
        t.said(h, t.one("All our work is gone!", "We can never do it.", "It is not fair!")),
    )  # fmt: skip
    end = tell(
        f"For a moment, {f.call} thought about it.",
        t.said(f, t.one(f"We can try again. This time, let us {better}.", f"I know! We should {better}.", f"Do not be sad. We just have to {better}.")),
        t.one(f"{h.call} dried {h.his} eyes.", f"{h.call} liked the idea."),
        "They started again, and this time they worked with more care.",
        f"{stands}!",
        t.said(h, t.one("We did it!", "Look! It is even better than before!", "It works! You were right!")),
        t.one(f"The two friends were very proud of their {what}.", f"{h.call} learned that it is good to try again.", "Two friends who help each other can do anything."),
    )  # fmt: skip
    return [begin, middle, end]


def taking_turns(t: Teller) -> Story:
    """Two children want one toy; it breaks or is put away until they take turns."""
    h, f, g = t.hero, t.friend(), t.grown_up("mom,dad,grandma,grandpa")
    toy = t.pick(TOYS)
    thing = f"{t.pick(toy.looks)} {toy.name}"
    begin = tell(
        t.opening(),
        f"{t.one('One sunny day', 'One day', 'One afternoon')}, {h.his} friend {f.call} came to play in the yard.",
        f"{h.call} had a new toy. It was {a(thing)}.",
        t.said(
            f, t.one("Can I play with it?", f"What a nice {toy.name}! May I have it for a while?")
        ),
        t.said(h, t.one("No, it is mine!", "No! I want to play with it now.")),
    )
    middle = tell(
        f"So {f.call} pulled the {toy.name}, and {h.call} pulled too.",
        t.one("They both got very loud.", "They were both angry."),
        f"{g.Call} heard the noise and came out of the house.",
        t.said(g, t.one("What is going on here?", "Why are you so loud?")),
        t.said(h, t.one(f"It is my {toy.name}!", "I had it first!")),
        f"{g.Call} took the {toy.name} and held it high in the air.",
        t.said(
            g,
            t.one(
                "If you fight, nobody can play with it.",
                "You may have it back when you can take turns.",
            ),
        ),
        t.one(
            "Now the two friends had nothing to play with.",
            "The two friends sat down in the grass and were sad.",
        ),
    )
    end = tell(
        f"After a while, {h.call} looked at {f.call}.",
        t.said(h, t.one("I am sorry. You can have the first turn.", "I am sorry. We can take turns.")),
        t.said(f, t.one("I am sorry too. I should not have pulled it.", "Thank you. Then it will be your turn.")),
        t.one(f"{g.Call} smiled and gave them the {toy.name}.", f"When {g.call} heard that, they got the {toy.name} back."),
        f"{f.call} {t.pick(toy.played)}, and then {h.call} had a turn.",
        t.one("It was much more fun that way.", "They played until dinner, and nobody was angry."),
        t.one("Good friends take turns.", f"{h.call} learned that playing together is better than playing alone."),
    )  # fmt: skip
    return [begin, middle, end]
