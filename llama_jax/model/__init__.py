"""The decoder: tables of weights, one pure layer function, a thin Flax shell."""
