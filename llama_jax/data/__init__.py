"""Text to tokens to batches, with NumPy only: nothing in this package imports jax."""
