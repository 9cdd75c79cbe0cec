"""Plots of growing up: skills, fears, mistakes, promises, patience, getting lost."""
# ruff: noqa: E501 (one sentence with its variants to a line reads as the story does)

from llama_jax.data.corpora.tales.plots_together import Story
from llama_jax.data.corpora.tales.teller import Teller, a, tell
from llama_jax.data.corpora.tales.words import COLORS, FOODS, TREATS


def learning(t: Teller) -> Story:
    """A skill fails for a reason; the advice meets the reason; practice makes it work."""
    h, g = t.hero, t.grown_up()
    skill, skilled, fail, advice, done = t.pick((
        ("ride a bike", "riding bikes", "fell off after two seconds", "Look at the road and not at your feet", "rode all the way down the street"),
        ("swim", "swimming", "got water in the nose", "Hold your breath and kick your legs", "swam from one side of the pool to the other"),
        ("whistle", "whistling", "blew and blew, but only air came out", "Make your lips very small and round", "whistled a whole song"),
        ("tie shoes", "tying shoes", "made a big knot that would not open", "Make two ears like a rabbit and cross them", "tied both shoes without help"),
        ("skate", "skating", "slipped and sat down on the ice", "Bend your knees a little", "skated in a big circle"),
        ("fly a kite", "flying kites", "ran, but the kite fell to the ground", "Wait for the wind before you run", "watched the kite fly high above the trees"),
        ("bake bread", "baking bread", "took the bread out too soon, and it was flat", "Wait until the bread is big and brown", "made a big, warm bread"),
        ("jump rope", "jumping rope", "stepped on the rope every time", "Listen to the sound of the rope and count", "jumped twenty times without a stop"),
        ("read", "reading", "did not know the long words", "Read one small part of the word at a time", "read a whole book out loud"),
        ("draw a horse", "drawing horses", "made a horse that looked like a dog", "Look at a real horse and draw the long legs first", "drew a horse that seemed to run"),
        ("catch a ball", "catching balls", "closed both eyes, and the ball fell down", "Keep your eyes open and watch the ball", "caught the ball five times"),
        ("climb the tree", "climbing trees", "slipped down again and again", "Put your foot where the branch is thick", "climbed up to the third branch"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        t.one(f"{h.call} wanted to learn to {skill}.", f"More than anything, {h.call} wanted to {skill}.", f"All of {h.his} friends could {skill}, but {h.call} could not."),
        f"{t.day()}, {h.call} tried it for the first time, {t.one('but it did not go well', 'but it was hard')}.",
        f"{h.call} {fail}.",
        t.said(h, t.one("This is too hard!", "I will never learn it.", "Why can I not do it?")),
        t.one(f"{h.call} was sad and wanted to stop.", f"{h.call} was angry and threw up {h.his} arms."),
    )  # fmt: skip
    middle = tell(
        f"{g.Call} saw it and came to help.",
        t.said(g, t.one("It was hard for me too when I was small.", "Nobody can do it the first time.", "You only need to try again.")),
        t.one(f"{g.Call} was good at {skilled}.", f"{g.Call} knew a lot about {skilled}."),
        t.said(g, f"{advice}."),
        f"{h.call} tried again, and this time it was a little better.",
        t.one(f"Every day, {h.he} tried again.", f"The next day, {h.he} tried again, and the day after that too."),
        t.one("Some days were good and some days were bad, but it got easier.", f"{h.call} was tired, but {h.he} did not stop."),
    )  # fmt: skip
    end = tell(
        t.one("Then, one day, it worked!", "After a week, something wonderful happened."),
        f"{h.call} {done}.",
        t.said(h, t.one("Look at me! I can do it!", f"I can {skill}!", "I did it! I did it!")),
        t.one(f"{g.Call} clapped and smiled.", f"{g.Call} gave {h.him} a big hug."),
        t.said(g, t.one("I am so proud of you!", "You did not give up, and now you can do it.")),
        t.one(f"{h.call} was very proud too.", f"{h.call} was so happy that {h.he} danced.", f"Now {h.call} helps other children who want to {skill}."),
    )  # fmt: skip
    return [begin, middle, end]


def mistake(t: Teller) -> Story:
    """Something breaks through play; the truth is told and the thing is put right."""
    h, g = t.hero, t.grown_up("mom,dad,grandma,grandpa,aunt,uncle")
    thing, repair, fixed = t.pick((
        ("vase", "They put the parts together with glue.", "The vase had little lines now, but it could hold flowers again."),
        ("cup", "They found all the parts and used strong glue.", "The cup looked almost new."),
        ("lamp", "They cleaned the floor and put in a new light.", "The lamp was bright again."),
        ("plate", "They picked up the parts and made a pretty picture out of them.", "The picture hung in the kitchen from then on."),
        ("clock", "They opened the clock and turned a small wheel.", "Soon the clock said tick, tock again."),
        ("flower pot", "They put the flower into a new pot and gave it water.", "The next day, the flower stood up straight."),
        ("picture", "They made a new frame out of wood.", "The picture looked even nicer than before."),
    ))  # fmt: skip
    play, result = t.pick((
        ("threw a ball", f"The ball hit the {thing}."),
        ("ran around the table", f"{h.His} arm hit the {thing}."),
        ("jumped on the sofa", f"{h.His} foot hit the {thing}."),
        ("danced with a broom", f"The broom hit the {thing}."),
    ))  # fmt: skip
    color = t.pick(COLORS)
    begin = tell(
        t.opening(),
        f"{g.Call} had {a(f'{color} {thing}')} and liked it very much.",
        t.said(
            g,
            t.one(
                "Please do not play wild games in the house.", f"Please be careful with my {thing}."
            ),
        ),
        f"But {t.one('one rainy day', 'one afternoon', 'one day')}, {h.call} was bored and {play} in the living room.",
        result,
        t.one(
            f"Crash! The {thing} fell down and broke.",
            f"The {thing} fell to the floor with a loud crash.",
        ),
    )
    middle = tell(
        t.one(f"Now {h.call} was scared.", f"At once, {h.call} felt terrible.", f"Oh no! {h.call}'s heart beat fast."),
        t.one(f"{h.call} wanted to hide the parts under the rug.", f"First, {h.he} thought, \"I can say that the cat did it.\"", f"First, {h.he} hid behind the sofa."),
        t.one("But that did not feel right.", f"But {h.he} knew that a lie would make it worse."),
        f"So {h.he} went to {g.call} and told the truth.",
        t.said(h, t.one(f"I broke your {thing}. I am so sorry.", f"I am sorry. I played in the house, and now the {thing} is broken.")),
    )  # fmt: skip
    end = tell(
        t.one(f"{g.Call} looked sad for a moment.", f"{g.Call} was quiet for a moment."),
        f"Then {g.he} took {h.call}'s hand.",
        t.said(g, t.one("Thank you for telling me the truth. That was brave.", "I am sad, but I am glad that you told me.", "Everyone makes mistakes. Let us fix it together.")),
        repair,
        fixed,
        t.one(f"{h.call} felt much better.", f"{h.call} gave {g.call} a big hug."),
        t.one(f"After that, {h.call} only played wild games outside.", "It is always best to tell the truth.", f"From then on, {h.call} was careful in the house."),
    )  # fmt: skip
    return [begin, middle, end]


def promise(t: Teller) -> Story:
    """A promise is almost forgotten; what depends on it shows why it matters."""
    h, g, f = t.hero, t.grown_up("mom,dad,grandma,grandpa,aunt,uncle"), t.friend()
    task, tasked, why, state, better = t.pick((
        ("water the flowers", "watered the flowers", "Without water, they will die", "The flowers hung their heads", "Soon the flowers stood up again"),
        ("feed the fish", "fed the fish", "They get hungry every day", "The fish swam around and looked for food", "The fish ate and danced in the water"),
        ("feed the rabbit", "fed the rabbit", "It cannot find food alone", "The rabbit sat in a corner and looked hungry", "The rabbit ate a whole carrot and hopped around"),
        ("close the gate", "closed the gate", "The sheep may run away", "The sheep were already looking at the open gate", "Now the sheep were safe"),
        ("take the dog out", "took the dog out", "It is sad when it is alone all day", "The dog sat by the door and waited", "The dog jumped and ran with joy"),
        ("give the hens water", "gave the hens water", "It is a very hot day", "The hens stood by the empty bowl", "The hens drank for a long time"),
    ))  # fmt: skip
    game = t.one(
        "play ball", "swim in the lake", "play hide and seek", "fly a kite", "build a tent"
    )
    begin = tell(
        t.opening(),
        f"{t.day()}, {g.call} had to go to town.",
        t.said(g, f"Can you {task} today? {why}."),
        t.said(h, t.one("Yes, I promise!", "I promise. You can count on me.")),
        t.one(f"{g.Call} smiled and left.", f"Then {g.call} waved and left."),
    )  # fmt: skip
    middle = tell(
        t.one(f"Soon {h.his} friend {f.call} came by.", f"A little later, {h.his} friend {f.call} knocked on the door."),
        t.said(f, f"Do you want to {game} with me?"),
        t.one(f"That sounded like fun, so {h.call} went along.", f"{h.call} loved that game and ran out at once."),
        t.one("They played for a long time.", "They played all afternoon."),
        t.one(f"Suddenly, {h.call} stopped.", f"Then {h.call} stood still."),
        t.said(h, t.one("Oh no! I forgot my promise!", f"I promised to {task}! I must go home.")),
        t.said(f, t.one("Can you do it later?", "Stay a little longer!", "Then I will come and help you.")),
    )  # fmt: skip
    end = tell(
        t.one("A promise is a promise, so they ran home.", f"But {h.call} did not want to break a promise, so {h.he} ran home as fast as possible."),
        f"{state}.",
        f"Quickly, {h.call} {tasked}.",
        f"{better}.",
        f"When {g.call} came home, {h.call} told {g.him} everything.",
        t.said(g, t.one("You kept your promise. Thank you!", "I knew that I could trust you.", "You remembered just in time. Well done!")),
        t.one(f"{h.call} was proud.", f"{h.call} felt good inside.", f"{h.call} smiled and was glad to be back in time."),
    )  # fmt: skip
    return [begin, middle, end]


def fear(t: Teller) -> Story:
    """A fear is explained by someone, and one small step ends it."""
    h, g = t.hero, t.grown_up()
    of, when, explain, step, after = t.pick((
        ("the dark", "When the light went out, the room was full of black shapes", "The shapes are only your chair and your coat. They are the same at night", "touched the black shape by the wall, and it was only the coat", "slept well without a light"),
        ("thunder", "One night, there was a loud boom in the sky", "Thunder is only the sound of the storm. It cannot come into the house", "counted the booms by the window", "thought that the storm was like a big drum"),
        ("dogs", "One day, a big dog ran up the street", "That dog is friendly. See how it wags its tail", "held out a hand, and the dog licked it", "patted the dog every morning"),
        ("deep water", "One hot day, everyone jumped into the lake", "You can start where the water is low, and I will hold your hand", "walked in until the water came to the knees", "played in the water every day"),
        ("the high slide", "At the park, the slide looked as tall as a house", "I will stand at the bottom and catch you", "climbed up slowly and let go", "went down ten more times"),
        ("spiders", "One morning, a spider sat on the wall", "The spider is small, and it eats the flies that bother us", "looked at the spider through a glass", "gave the spider a name"),
        ("the doctor", "One day, it was time to see the doctor", "The doctor wants to help you, and I will be with you", "sat still and let the doctor look", "waved to the doctor at the end"),
        ("the first day of school", "On Monday, the school looked very big", "All the other children are new too", "said hello to the child in the next chair", "could not wait to go back to school"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        t.one(f"{h.call} liked almost everything, but {h.he} was afraid of {of}.", f"There was one thing that scared {h.him}: {of}."),
        f"{when}.",
        t.one(f"{h.call} began to shake.", f"{h.call} wanted to run away.", f"{h.call} hid {h.his} face."),
        t.said(h, t.one("I am scared!", "I do not like it! Please help me!", "Please make it go away!")),
    )  # fmt: skip
    middle = tell(
        t.one(f"{g.Call} came and sat down next to {h.him}.", f"{g.Call} took {h.his} hand."),
        t.said(g, t.one("It is all right to be afraid.", "I was afraid too when I was little.", "Being brave means that you try even if you are scared.")),
        t.said(g, f"{explain}."),
        t.one(f"{h.call} thought about it.", f"{h.call} took a deep breath."),
        t.said(h, t.one("I will try, but only a little.", "Will you stay with me?")),
        t.said(g, "Of course I will stay with you.") if t.chance(0.5) else "",
    )  # fmt: skip
    end = tell(
        f"Slowly, {h.call} {step}.",
        t.one("It was not so bad!", "Nothing bad happened."),
        t.one(f"{h.call} laughed.", f"{h.call} was surprised and began to smile."),
        t.said(h, t.one("I did it! I am not afraid anymore.", "It is not scary at all!")),
        t.said(g, t.one("You were very brave!", "I am so proud of you.")),
        f"After that, {h.call} {after}.",
        t.one(f"{h.call} felt big and strong.", f"Now {h.call} was not afraid of {of} anymore.", ""),
    )  # fmt: skip
    return [begin, middle, end]


def planting(t: Teller) -> Story:
    """A seed needs days, water and sun; who waits can share what grows."""
    h, g, f = t.hero, t.grown_up("mom,dad,grandma,grandpa,aunt,uncle"), t.friend()
    plant, fruit, dish = t.pick((
        ("tomato", "red tomatoes", "tomato soup"),
        ("strawberry", "sweet strawberries", "strawberry cake"),
        ("pumpkin", "a big orange pumpkin", "pumpkin pie"),
        ("bean", "long green beans", "a pot of beans"),
        ("carrot", "crunchy carrots", "carrot cake"),
        ("sunflower", "a tall yellow flower full of seeds", "bread with seeds"),
        ("pea", "round green peas", "pea soup"),
    ))  # fmt: skip
    begin = tell(
        t.opening(),
        f"{t.day()}, {g.call} gave {h.him} {a(plant)} seed.",
        t.said(g, t.one("Put it in the ground and give it water every day.", "If you take care of it, it will grow.")),
        f"{h.call} dug a small hole {t.one('in the garden', 'behind the house', 'next to the fence')}, put in the seed, and gave it water.",
        t.said(h, t.one("Grow, little seed!", "I cannot wait to see it!")),
    )  # fmt: skip
    middle = tell(
        f"The next morning, {h.call} ran out to look, but there was nothing.",
        t.one("The day after that, there was still nothing.", "Three days went by, and still there was nothing."),
        t.said(h, t.one("Why does it not grow?", "Maybe my seed is broken.")),
        t.said(g, t.one("A seed needs time. Be patient.", "It is growing under the ground, where you cannot see it.")),
        f"So {h.call} gave it water every day and waited.",
        t.one("The sun was warm, and sometimes it rained.", f"Sometimes {h.call} sang to it."),
        "Then, one morning, a tiny green leaf came out of the ground!",
        t.said(h, t.one("It is alive!", "Look! It is growing!")),
    )  # fmt: skip
    end = tell(
        f"The plant grew and grew. At the end of the summer, {h.call} had {fruit}.",
        f"{h.call} and {g.call} made {dish}.",
        t.one(f"{h.call} shared it with {h.his} friend {f.call}.", f"In the evening, {h.his} friend {f.call} came to eat with them."),
        t.said(f, t.one("This is so good! How did you make it?", "Yum! Where did you get it?")),
        t.said(h, t.one("I grew it. It only took water, sun and time.", "It came from one little seed.")),
        t.one(f"{h.call} was proud, and kept one seed for the next year.", f"{h.call} learned that good things take time."),
    )  # fmt: skip
    return [begin, middle, end]


def lost_child(t: Teller) -> Story:
    """A child loses a parent in a crowd, does what was taught, and is found by it."""
    h, g = t.hero, t.parent()
    where, saw = t.pick((
        ("the market", "a stand with shiny toys"), ("the zoo", "a funny monkey"), ("the fair", "a man with balloons"),
        ("the big store", "a shelf full of toys"), ("the train station", "a big red train"), ("the library", "a book about dragons"),
    ))  # fmt: skip
    color, food = t.pick(COLORS), t.pick(FOODS)
    stranger = t.one("an old woman", "a friendly woman", "a young woman")
    begin = tell(
        t.opening(),
        f"{t.day()}, {h.call} went to {where} with {g.call}.",
        f"{g.Call} wore {a(f'{color} coat')}.",
        t.said(g, t.one("If you ever get lost, stand still and wait. I will find you.", "There are many people here. If you cannot see me, stay where you are.")),
        t.said(h, "Yes, I will.") if t.chance(0.6) else f"{h.call} nodded.",
    )  # fmt: skip
    middle = tell(
        t.one("There was so much to see!", "It was loud and full of people."),
        f"Then {h.call} saw {saw} and stopped to look.",
        f"When {h.he} turned around, {g.call} was gone.",
        t.one(f"{h.call} was very scared.", f"{h.call}'s eyes filled with tears."),
        t.one(f"{h.call} wanted to run and look everywhere.", f"{h.call} saw many coats, but not {a(f'{color} one')}."),
        f"Then {h.he} remembered the words: stand still and wait.",
        f"So {h.call} stood next to {saw.replace('a ', 'the ', 1)} and waited.",
        t.one(f"{stranger.capitalize()} who worked there asked, \"Are you lost?\"", f"{stranger.capitalize()} who worked there saw {h.him} and came over."),
        t.said(h, f"I cannot find my {g.call.split()[-1]}. {g.He} has {a(f'{color} coat')}."),
    )  # fmt: skip
    end = tell(
        t.one("The woman waited with " + h.him + ".", "The woman stayed and held " + h.his + " hand."),
        f"Soon {h.call} saw {a(f'{color} coat')} between all the people. It was {g.call}!",
        t.one(f"{g.Call} ran over and hugged {h.him}.", f"{h.call} jumped into {g.his} arms."),
        t.said(g, t.one("You stood still, just as I told you. Well done!", "I was so worried! I am glad that you waited.")),
        t.one(f"They thanked the woman and bought {a(food)} to share.", "They thanked the woman and went home."),
        t.one(f"On the way home, {h.call} held {g.his} hand very tight.", f"{h.call} felt safe again."),
    )  # fmt: skip
    return [begin, middle, end]


def helping_cook(t: Teller) -> Story:
    """Something is missing for a meal; it is borrowed, and the neighbor is thanked with a share."""
    h, g = t.hero, t.grown_up("mom,dad,grandma,grandpa")
    dish = t.pick(TREATS)
    thing, amount = t.pick((("sugar", "a cup of sugar"), ("milk", "a bottle of milk"), ("honey", "a jar of honey"), ("butter", "some butter"), ("flour", "a bag of flour")))  # fmt: skip
    neighbor = t.one("Mr. Brown", "Mrs. Green", "Mrs. Hill", "Mr. Lake", "Mrs. Rose", "Mr. Wood")
    he = "he" if neighbor.startswith("Mr.") else "she"
    begin = tell(
        t.opening(),
        f"{t.day()}, {h.he} wanted to make {dish} with {g.call}.",
        t.said(h, t.one(f"I love {dish}!", "Can I help you?", "I will do the mixing!")),
        f"They put everything on the table, but there was no {thing}.",
        t.said(g, t.one(f"Oh dear. We cannot make {dish} without {thing}.", f"I forgot to buy {thing}, and the store is closed.")),
    )  # fmt: skip
    middle = tell(
        t.one(f"For a moment, {h.call} was sad.", f"But {h.call} did not want to give up."),
        f"Then {h.he} had an idea.",
        t.said(h, f"I can ask {neighbor} next door!"),
        f"{h.call} ran to the next house and knocked on the door.",
        t.said(h, f"Hello, {neighbor}! May we have {amount}, please?"),
        f'"Of course," said {neighbor}, and {he} gave {h.call} {amount}.',
        t.one(f"{h.call} carried it home very slowly, so that nothing was lost.", f"{h.call} said thank you and walked home with care."),
    )  # fmt: skip
    end = tell(
        "Now they had everything.",
        f"{h.call} helped to mix, and {g.call} did the hot part.",
        t.one("Soon the whole kitchen smelled good.", "It smelled so good that the cat woke up."),
        t.said(h, t.one(f"We should give some to {neighbor}!", f"{neighbor} helped us, so let us share.")),
        t.said(g, t.one("That is a kind idea.", "You are right.")),
        f"They took some of the {dish} to {neighbor}, who was very happy." if dish != "pancakes" else f"They took four pancakes to {neighbor}, who was very happy.",
        t.one("Then they all sat down and ate together.", f"When we share, everyone is happy, thought {h.call}."),
    )  # fmt: skip
    return [begin, middle, end]
