"""One prepared corpus for all tests of the loop."""

import pytest

from tests.train.tiny import Tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))
