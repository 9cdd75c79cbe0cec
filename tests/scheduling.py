"""Which worker of xdist runs a test."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).parents[1]


class Together(LoadScopeScheduling):
    """Modules whose tests share what they begin with go to one worker each, since two would each
    make it; all other tests go wherever there is nothing to do.

    A test during which its worker dies has failed, and the rest of the worker's tests go to others.
    xdist's own class would run that test again, in the worker that takes the dead one's place, and
    would wait for ever for a new worker with one test, which it begins when it knows the next.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        units = self.assigned_work.pop(node)
        left = [(unit, test) for unit in units.values() for test, done in unit.items() if not done]
        if not left:
            return None
        unit, crashed = left[0]
        unit[crashed] = True
        self.workqueue.update(
            {name: unit for name, unit in units.items() if not all(unit.values())}
        )
        self._all_again()
        return crashed

    def schedule(self) -> None:
        begun = self.collection is not None
        super().schedule()
        if begun:
            self._all_again()

    def _all_again(self) -> None:
        for node in self.assigned_work:
            self._reschedule(node)

    def _reschedule(self, node: WorkerController) -> None:
        # A new worker has no tests to name before it has collected them.
        if node in self.registered_collections:
            super()._reschedule(node)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if shares(file) else nodeid


@cache
def shares(file: str) -> bool:
    """Whether a module has fixtures that are made once for all of its tests."""
    return 'scope="module"' in (ROOT / file).read_text()
