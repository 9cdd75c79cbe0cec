"""TPU planning and kernel analysis without a TPU."""
