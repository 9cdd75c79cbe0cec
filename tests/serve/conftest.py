"""One model and one engine for all tests of the server."""

import shutil
from dataclasses import replace

import pytest

from llama_jax.config import LoraConfig
from llama_jax.model.by_row import Adapter
from tests.serve.browser import Browser, browsing
from tests.serve.server import (
    Gate,
    engine_of,
    random_factors,
    random_model,
    running,
    served_by,
)

ROOMY = 8192
LORA = LoraConfig(rank=4, targets=("q", "v", "down"))


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


@pytest.fixture(scope="session")
def roomy():
    """An engine with a long context and an adapter beside its model, and what requests see."""
    model = random_model(ROOMY)
    adapter = Adapter(LORA, random_factors(model.config, LORA, 0))
    engine = engine_of(model, [adapter], num_pages=3 * ROOMY // 8)
    engine.start()
    yield engine, replace(served_by(model), adapters=("poems",))
    engine.stop()


@pytest.fixture(scope="module")
def large(roomy):
    with running(*roomy) as server:
        yield server


@pytest.fixture
def gate(roomy, monkeypatch):
    device = roomy[0]._device
    gate = Gate(device.draw)
    monkeypatch.setattr(device, "draw", gate.draw)
    yield gate
    gate.free = True


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One Chromium for all tests of a process: its start costs more than most of them."""
    missing = [n for n in ("chromium", "chromedriver") if shutil.which(n) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here: apt-get install chromium chromium-driver")
    with browsing(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def browser(driver):
    """A tab that must see nothing go wrong, and ask no other server for anything."""
    browser = Browser(driver)
    yield browser
    driver.get("about:blank")
    assert browser.complaints() == []
