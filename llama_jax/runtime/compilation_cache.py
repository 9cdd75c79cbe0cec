"""Persistent compilation cache: a program that runs again compiles nothing."""

import logging
import warnings

import jax

from llama_jax.config import InputError, TrainConfig
from llama_jax.runtime.places import cache_folder, cpu_name

logger = logging.getLogger(__name__)
DEFAULT = TrainConfig.compilation_cache
_JAX_SECONDS = 1.0  # what jax keeps no program below, unless it is told


def keep_programs(folder: str = DEFAULT) -> None:
    """Cache compiled programs in a folder; empty disables the cache.

    A folder named by the environment (JAX_COMPILATION_CACHE_DIR) or by the program takes precedence
    over the default. The default differs by kind of CPU: a home folder is often shared by machines
    that cannot run each other's programs. If the folder cannot be written, only time is lost.
    """
    if not folder or (folder == DEFAULT and jax.config.jax_compilation_cache_dir):
        return
    try:
        place = cache_folder(
            f"{DEFAULT}/{cpu_name()}" if folder == DEFAULT else folder, "compilation_cache"
        )
    except InputError as error:
        logger.warning("%s: compiled programs are not cached", error)
        return
    jax.config.update("jax_compilation_cache_dir", place)
    small = jax.config.jax_persistent_cache_min_compile_time_secs == _JAX_SECONDS
    if small and "://" not in place:  # generation is a hundred small programs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # An entry that is cut short, or a full disk: the program is compiled as if there were none.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
