"""Which worker of xdist runs a test."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]


class Together(LoadScopeScheduling):
    """Modules whose tests share what they begin with go to one worker each, since two would both
    make it; all other tests go wherever there is nothing to do."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if shares(file) else nodeid


@cache
def shares(file: str) -> bool:
    """Whether a module has fixtures that are made once for all of its tests."""
    return 'scope="module"' in (ROOT / file).read_text()
