"""Every test runs on 8 fake CPU devices; silent broadcasting of ranks is an error."""

import os

# Set before jax starts: its backend reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
