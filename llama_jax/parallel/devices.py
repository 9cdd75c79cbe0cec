"""What one device can do at most, as its maker publishes it, by the name that jax gives it."""

# Dense bfloat16 FLOP/s: Cloud TPU system architecture pages; NVIDIA A100, H100 and H200 data
# sheets, SXM.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s of one `jax.Device.device_kind`, None if it is not known."""
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None
