"""Adapters beside the model: each has a name, and answers as the merged model does."""

from dataclasses import replace

import pytest

import llama_jax
from llama_jax.adapters import open_adapter
from llama_jax.checkpoint import save_model
from llama_jax.config import LoraConfig
from llama_jax.config_file import model_json
from llama_jax.convert import peft
from llama_jax.models import open_model
from tests.serve.server import engine_of, random_factors, running
from tests.serve.test_command import refused

LORA = LoraConfig(rank=4, targets=("q", "v", "down"))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The model as a folder, and adapters of it as PEFT keeps them."""
    place = tmp_path_factory.mktemp("adapters")
    tokenizer = model.tokenizer.model_bytes
    save_model(place / "tiny", model.params, model_json(model.config), tokenizer, {})
    for seed, name in enumerate(("poems", "mail")):
        factors = random_factors(model.config, LORA, seed)
        (place / name).mkdir()
        peft.write(place / name, LORA, factors, model.config, str(place / "tiny"))
    return place


def test_requests_name_the_adapter_and_get_the_merged_models_answer(model, served, folders):
    base = open_model(str(folders / "tiny"))
    names = ("poems", "mail")
    adapters = [open_adapter(str(folders / name), base).read() for name in names]
    engine = engine_of(model, adapters)
    engine.start()
    answers = []
    with running(engine, replace(served, adapters=names)) as server:
        cards = server.ask("GET", "/v1/models")[2]["data"]
        assert [card["id"] for card in cards] == ["tiny", *names]
        assert [card.get("parent") for card in cards] == [None, "tiny", "tiny"]
        assert server.ask("GET", "/v1/models/mail")[2]["id"] == "mail"
        for name in ("tiny", *names):
            said = server.post(
                "/v1/completions", model=name, prompt="The dog", max_tokens=12, temperature=0
            )
            assert said["model"] == name
            answers.append(said["choices"][0]["text"])
            source = folders / name
            whole = llama_jax.generate(
                llama_jax.load(str(source)), "The dog", max_new_tokens=12, temperature=0.0
            )
            assert whole.removeprefix("The dog") == answers[-1]
        status, _, body = server.ask("POST", "/v1/completions", {"model": "prose", "prompt": "a"})
        assert status == 404
        assert "this server has tiny, poems, mail" in body["error"]["message"]
    engine.stop()
    assert len(set(answers)) == 3


def test_bad_adapters_are_one_line(capsys, folders, model, tmp_path):
    tiny, poems = folders / "tiny", folders / "poems"
    assert "'poems' is not NAME=RUN" in refused(capsys, tiny, "--adapter", "poems")
    twice = ("--adapter", f"a={poems}", "--adapter", f"a={poems}")
    assert "two of the model and its adapters are called a" in refused(capsys, tiny, *twice)
    assert "called tiny" in refused(capsys, tiny, "--adapter", f"tiny={poems}")
    assert "holds no adapters" in refused(capsys, tiny, "--adapter", f"a={tiny}")
    small = tmp_path / "small"
    config = replace(model.config, num_layers=1)
    params = {**model.params, "layers": {n: w[:1] for n, w in model.params["layers"].items()}}
    save_model(small, params, model_json(config), model.tokenizer.model_bytes, {})
    assert "does not fit rank 4" in refused(capsys, small, "--adapter", f"a={poems}")
