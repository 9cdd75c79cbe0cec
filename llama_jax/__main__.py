"""`python -m llama_jax` is `llama-jax`."""

import sys

from llama_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
