"""Every test runs on 8 fake CPU devices; silent broadcasting of ranks is an error.

What XLA compiles is kept, for other tests, other workers of xdist, the processes that tests start
and other runs: more than half of the tests' time would be compiling the same programs again. The
folder is one for each version of jaxlib and kind of CPU; JAX_COMPILATION_CACHE_DIR names another
one, and empty, none. For the same reason programs for CPUs are compiled without most optimisations,
which the compilers for TPUs know nothing of: JAX_DISABLE_MOST_OPTIMIZATIONS=0 brings them back.
"""

import os
from collections.abc import Iterator
from typing import Any

from tests.kept_programs import kept_programs

# Set before jax starts: it reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices on two busy cores meet late, which is no error; a hang is for pytest to find.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
# A device that waits in a collective holds a thread; when others wait in another one that does not
# depend on it, and no thread is left, all wait for ever. XLA would make 8.
os.environ.setdefault("PJRT_NPROC", "64")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept_programs()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
# How fast a machine is decides no test.
settings.register_profile("llama_jax", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llama_jax")


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs as users have them, here and in processes that a test starts: for the equality of
    bits, and where they run for longer than they compile."""
    from tests.optimized import NAME, optimizing

    monkeypatch.setenv(NAME.upper(), "0")
    with optimizing():
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """See tests/scheduling.py."""
    from tests.scheduling import Together

    return Together(config, log)
