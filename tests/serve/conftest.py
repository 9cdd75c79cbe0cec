"""One model and one engine for all tests of the server."""

import pytest

from tests.serve.server import engine_of, random_model, running, served_by


@pytest.fixture(scope="session")
def model():
    return random_model()


@pytest.fixture(scope="session")
def served(model):
    return served_by(model)


@pytest.fixture(scope="session")
def engine(model):
    engine = engine_of(model)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def server(engine, served):
    with running(engine, served) as server:
        yield server
