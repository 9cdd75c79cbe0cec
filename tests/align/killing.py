"""A command in a process of its own, killed when its metrics have grown so far."""

import os
import subprocess
import sys
import time
from pathlib import Path


def killed_after(command: list[str], at: tuple[Path, int] | None) -> int:
    """Exit status of `llama-jax COMMAND`; with `at`, SIGKILLed when the file has so many lines."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=str(Path(__file__).parents[2]),
        XLA_FLAGS="--xla_force_host_platform_device_count=1",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_jax", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while at is not None and process.poll() is None:
        file, lines = at
        if file.exists() and file.read_text().count("\n") >= lines:
            process.kill()
            break
        time.sleep(0.01)
    _, said = process.communicate(timeout=300)
    assert at is not None or process.returncode == 0, said
    return process.returncode
