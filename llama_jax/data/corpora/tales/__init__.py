"""Tales: short stories for small models, told by rules and one seed.

In the spirit of TinyStories (Eldan and Li 2023), with about a thousand words. Each plot is a
function that draws people, places and things first and then tells causes before effects, so that
what is lost under a tree is found under that tree. Story `i` of a split is a pure function of
(seed, split, i). One pair in 16 of plot and hero belongs to the validation split, so no training
story has it.

`stories` is the text that models are pretrained on. Instructions and preferences over the same
world belong beside it in this package.
"""

from llama_jax.data.corpora.tales.stories import NUM_TRAIN, NUM_VALIDATION, VERSION, story

__all__ = ["NUM_TRAIN", "NUM_VALIDATION", "VERSION", "story"]
