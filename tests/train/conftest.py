"""One prepared corpus for all tests of the loop."""

from collections.abc import Iterator

import pytest

from tests.devices import devices
from tests.train.tiny import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """What several devices change is asked by tests of the step, and where it is named."""
    with devices(1):
        yield
