"""Continuous batching: many requests at once over a paged KV cache, with exact results for each."""
