"""Continuous batching: many requests at once over pages of keys and values, exact for each."""
