"""Available devices, and the peak rates that their makers publish."""

# Dense bfloat16 FLOP/s of what jax calls a device: Cloud TPU system architecture pages, where v2,
# v3 and TPU7x have two devices a chip; NVIDIA A100, H100 and H200 data sheets, SXM.
PEAK_FLOPS = {
    "TPU v2": 45e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Published dense bfloat16 FLOP/s of one `jax.Device.device_kind`, None if it is not known."""
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def on_cpus() -> bool:
    """Whether the mesh in context consists of CPUs, or without one the default device is one."""
    import jax  # the planner reads the table above before it needs jax

    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "cpu" if device is None else device.device_kind == "cpu"


def free_bytes() -> int | None:
    """Memory that the fullest device of this host has left; None if one does not tell, as CPUs."""
    import jax

    told = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all("bytes_limit" in stats for stats in told):
        return None
    return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in told)
