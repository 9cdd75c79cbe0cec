"""Story `i` of a split as a pure function of (seed, split, i)."""

from llama_jax.data.corpora.tales import plots_growing, plots_nature, plots_together
from llama_jax.data.corpora.tales.teller import Teller

VERSION = 2
"""Increase it whenever any story changes: it is part of the fingerprint of prepared data."""
NUM_TRAIN, NUM_VALIDATION = 200_000, 2_000
"""Stories in the splits; `story` can make more."""

PLOTS = (
    plots_together.lost_and_found,
    plots_together.sharing,
    plots_together.gift,
    plots_together.new_friend,
    plots_together.building,
    plots_together.taking_turns,
    plots_growing.learning,
    plots_growing.mistake,
    plots_growing.promise,
    plots_growing.fear,
    plots_growing.planting,
    plots_growing.lost_child,
    plots_growing.helping_cook,
    plots_nature.rain,
    plots_nature.animal_help,
    plots_nature.fable,
    plots_nature.night_sound,
    plots_nature.race,
)
_SPLITS = ("train", "validation")


def story(index: int, split: str = "train", seed: int = 0) -> str:
    """One story of 60 to 220 words, paragraphs on lines of their own."""
    validation = split == _SPLITS[1]
    plot = index % len(PLOTS)
    teller = Teller((seed << 41) + (index << 1) + validation, plot, validation)
    return "\n".join(PLOTS[plot](teller))
