"""Corpora that come with the package, as TFDS builders that need no download."""
