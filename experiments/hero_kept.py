"""How many sampled stories keep their hero: the child of the first sentence is the one of the last.

Command   python experiments/hero_kept.py runs/quickstart                 100 stories
          python experiments/hero_kept.py runs/quickstart --stories 400 --show 3
Hardware  any; a few seconds on two CPU cores
Expected  90 of 100 for `make quickstart`

Stories begin in turn as OPENINGS does and are drawn in one batch, story i with seed i. A story
counts if it ends by itself and `hero_kept` holds; the rule is in llama_jax/data/corpora/tales.
"""

import argparse
from itertools import cycle, islice

from llama_jax.config import InputError
from llama_jax.data.corpora.tales.heroes import hero_kept
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.models import Model, load

OPENINGS = ("", "Once upon a time", "Once there was a", "There once was a")
TEMPERATURE = 0.7


def sample_stories(model: Model, count: int) -> list[tuple[str, bool]]:
    """`count` stories, each with whether it came to its end (EOS) within the context."""
    tokenizer, config = model.tokenizer, model.config
    if tokenizer is None:
        raise InputError("the model has no tokenizer: train it, or convert it with --tokenizer")
    prompts = [tokenizer.encode(text, bos=True) for text in islice(cycle(OPENINGS), count)]
    params = SamplingParams(max_new_tokens=config.max_seq_len, temperature=TEMPERATURE)
    rows = generate_tokens(
        model.prepared,
        prompts,
        params.for_vocabulary(tokenizer.vocab_size, tokenizer.eos_id),
        config=config,
        seeds=range(count),
    )
    return [
        (tokenizer.decode([*prompt, *row]), len(prompt) + len(row) < config.max_seq_len)
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def main(argv: list[str] | None = None) -> None:
    """Print some of the stories, and how many keep their hero."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder or model")
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--show", type=int, default=0, help="print so many stories")
    args = parser.parse_args(argv)
    stories = sample_stories(load(args.run), args.stories)
    for text, ended in stories[: args.show]:
        verdict = "kept" if ended and hero_kept(text) else "lost"
        print(f"[{verdict}] {text}\n")
    kept = sum(ended and hero_kept(text) for text, ended in stories)
    print(f"hero kept in {kept} of {len(stories)} stories ({kept / len(stories):.0%})")


if __name__ == "__main__":
    main()
