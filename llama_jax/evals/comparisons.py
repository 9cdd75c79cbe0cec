"""Preference pairs of a model's own answers, rated by simulated annotators, for reward models.

The paper's annotators compare two answers of the newest model (section 3.2.1): a reward model that
only saw other answers does not see what is wrong with these. Here the rule judge stands in for the
annotators, and sees with noise.
"""

import itertools
from collections.abc import Iterator, Sequence

from llama_jax.align.answering import is_text
from llama_jax.data.corpora.tales import preferences
from llama_jax.data.corpora.tales.dice import Dice
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.data.records import Preference, Prompt
from llama_jax.evals.judged import Answer

_ANNOTATORS = 9
"""A stream of random numbers of its own."""


def compare(
    answer: Answer, prompts: Sequence[Prompt], *, samples: int, kind: str, seed: int = 0
) -> Iterator[Preference]:
    """`samples` answers to each prompt, and all pairs of them (as Ouyang et al. 2022 rank theirs).

    Answers of equal worth make no pair, since a choice between them would teach only noise; nor do
    empty ones.

    kind: `helpfulness` or `safety`, the quality that is compared.
    """
    asked = [p for p in prompts for _ in range(samples)]
    seeds = [(seed, number) for number in range(len(asked))]
    found = answer([p.messages for p in asked], seeds)
    judged = [
        (judge(p.messages, a.text, a.ended), a.text) for p, a in zip(asked, found, strict=True)
    ]
    for number, prompt in enumerate(prompts):
        of_prompt = judged[number * samples : (number + 1) * samples]
        dice = Dice(_ANNOTATORS, number, "train", seed)
        for (ours, one), (theirs, other) in itertools.combinations(of_prompt, 2):
            judgements, texts = (ours, theirs), (one, other)
            worth = {preferences.score(judgement, kind) for judgement in judgements}
            if len(worth) == 2 and all(map(is_text, texts)):
                yield preferences.chosen(prompt.messages, texts, judgements, kind, dice)
