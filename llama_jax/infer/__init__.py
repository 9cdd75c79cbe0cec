"""Generation: prefill, decode and sampling, on token ids only."""
