"""Where what XLA compiles for tests is kept."""

import hashlib
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path


def kept_programs() -> Path:
    """A folder of this user alone, since what lies there is run, on a machine of this kind."""
    mine = Path(tempfile.gettempdir()) / f"llama_jax-tests-{os.getuid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    assert mine.lstat().st_uid == os.getuid(), f"{mine} belongs to somebody else: remove it"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    flags = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    name = hashlib.sha256(repr((platform.machine(), flags)).encode()).hexdigest()[:12]
    return mine / f"jaxlib-{version('jaxlib')}-{name}"
