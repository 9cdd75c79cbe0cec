"""Preemption: saves a checkpoint on SIGTERM."""

import logging
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)


class Preemption:
    """Context in which SIGTERM asks for a save instead of ending the process.

    On one host a Python handler takes the first SIGTERM; the second ends the process at once, as
    it would have without this class. On several hosts the preemption service of
    `jax.distributed.initialize` (which has the handler then) agrees on one step for all.

        with Preemption() as preemption:
            for step in range(...):
                ...
                if preemption.reached(step):
                    save(step); break
    """

    def __init__(self):
        self._noticed = False
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _notice(self, signum: int, frame: FrameType | None) -> None:
        # Nothing is logged here: a handler may interrupt the logging of the main thread.
        self._noticed = True
        signal.signal(signum, signal.SIG_DFL)

    def reached(self, step: int) -> bool:
        """Whether the state must be saved now, after `step`.

        On several hosts every host calls this after every step; it becomes true on all of them at
        the same step.
        """
        if jax.process_count() > 1:
            reached = multihost_utils.reached_preemption_sync_point(step)
        else:
            reached = self._noticed
        if reached:
            logger.warning("SIGTERM: saving at step %d, then ending", step)
        return reached
