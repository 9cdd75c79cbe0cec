"""Pretraining: optimizer, state, one pure step, the loop around it."""
