"""Pallas kernels for TPU: flash attention, forward and backward, and decoding against a cache."""
