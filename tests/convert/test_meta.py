"""Meta's folders: the logits of Meta's own code, tensor-parallel parts, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.config import InputError
from llama_jax.convert import api, meta, pth
from llama_jax.data.sentencepiece_proto import Piece, with_pieces
from llama_jax.model.presets import LLAMA1_7B, LLAMA2_7B, LLAMA2_13B, LLAMA2_34B, LLAMA2_70B
from tests.comparison import assert_close
from tests.convert.models import BASE, random_params, same_bits, save

MADE_BY_META = Path(__file__).parents[3] / "shared/data/meta"


@pytest.mark.skipif(not MADE_BY_META.is_dir(), reason="the model of Meta's own code is not here")
def test_logits_of_metas_own_code():
    with np.load(MADE_BY_META / "expected.npz") as file:
        tokens, logits = file["tokens"], file["logits"]
    model = llama_jax.load(MADE_BY_META)
    found = llama_jax.apply(model.params, jnp.asarray(tokens), config=model.config)
    assert_close(found, logits, 1e-5)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "native", BASE)
    api.convert(tmp_path / "native", tmp_path / "meta", to="meta")
    return tmp_path / "meta"


def split(folder, parts, embed_axis):
    """Cut the one part of a folder as Meta's parallel layers are cut."""
    file = folder / "consolidated.00.pth"
    whole = {name: np.array(array) for name, array in pth.map_tensors(file).items()}
    for i in range(parts):
        cut = {}
        for name, array in whole.items():
            axis = 0
            if name.endswith(("wo.weight", "w2.weight")):
                axis = 1
            elif name == "tok_embeddings.weight":
                axis = embed_axis
            cut[name] = array if array.ndim == 1 else np.split(array, parts, axis)[i]
        shapes = {name: array.shape for name, array in cut.items()}
        target = folder / f"consolidated.{i:02}.pth"
        pth.write(target, shapes, np.float32, (np.ascontiguousarray(a) for a in cut.values()))


@pytest.mark.parametrize(("parts", "embed_axis"), [(2, 1), (2, 0)])
def test_tensor_parallel_parts_are_joined(folder, parts, embed_axis):
    split(folder, parts, embed_axis)
    assert len(list(folder.glob("*.pth"))) == parts
    assert same_bits(llama_jax.load(folder).params, random_params(BASE))


def test_parts_that_are_missing_or_differ_are_refused(folder):
    split(folder, 2, 1)
    second = folder / "consolidated.01.pth"
    second.rename(folder / "consolidated.02.pth")
    with pytest.raises(InputError, match="a part is missing"):
        api.open_source(folder)
    (folder / "consolidated.02.pth").rename(second)
    arrays = {name: np.array(array) for name, array in pth.map_tensors(second).items()}
    arrays["norm.weight"] += 1

    def rewrite():
        shapes = {name: array.shape for name, array in arrays.items()}
        pth.write(second, shapes, np.float32, iter(arrays.values()))

    rewrite()
    with pytest.raises(InputError, match=r"norm\.weight differs between the parts"):
        api.open_source(folder)
    del arrays["norm.weight"]
    rewrite()
    with pytest.raises(InputError, match=r"only one of .* holds \['norm\.weight'\]"):
        api.open_source(folder)
    second.unlink()  # one part of two: every matrix has half its rows or columns
    with pytest.raises(InputError, match=r"layers\.0\.attention\.wq\.weight is \[12, 24\], not"):
        api.open_source(folder)


@pytest.mark.parametrize("config", [LLAMA1_7B, LLAMA2_7B, LLAMA2_13B, LLAMA2_34B, LLAMA2_70B, BASE])
def test_metas_formula_gives_the_width_of_the_mlp(config):
    values = meta._multiples(config)
    F = meta.hidden_size(config.d_model, values["multiple_of"], values.get("ffn_dim_multiplier"))
    assert config.d_ff == F


def test_released_widths():
    """dim, multiple_of and ffn_dim_multiplier of Meta's released params.json."""
    assert meta.hidden_size(4096, 256, None) == 11_008
    assert meta.hidden_size(8192, 4096, 1.3) == 28_672


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": {"num_experts": 8}}, "has settings {'moe'"),
        ({"use_scaled_rope": True}, "{'use_scaled_rope': True} that are not supported (Llama 3.1"),
        ({"dim": None}, "dim is missing"),
        ({"dim": "24"}, "dim='24' must be a positive number"),
        ({"n_heads": 5}, "dim=24 is not a multiple of n_heads=5"),
        ({"n_kv_heads": 3}, "must be divisible"),
        ({"norm_eps": 0}, "norm_eps=0 must be a positive number"),
        ({"multiple_of": 4096}, r"feed_forward.w1.weight is [40, 24], not [4096, 24]"),
        ({"vocab_size": 401}, "tok_embeddings.weight is [400, 24], not [401, 24]"),
        ({"n_layers": 10**9}, "layers.2.attention_norm.weight is missing"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, changes, message):
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, **changes}))
    with pytest.raises(InputError) as caught:
        api.open_source(folder)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1500


def put_params(folder, **changes):
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, **changes}))


@pytest.mark.parametrize(("parts", "embed_axis"), [(1, 0), (2, 1), (2, 0)])
def test_the_embedding_says_the_vocabulary_where_params_do_not(folder, parts, embed_axis):
    put_params(folder, vocab_size=-1)
    split(folder, parts, embed_axis)
    assert api.open_source(folder).config.vocab_size == BASE.vocab_size
    (folder / "tokenizer.model").unlink()
    assert api.open_source(folder).config.vocab_size == BASE.vocab_size


def test_a_tokenizer_in_the_folder_above_is_found(folder):
    """Where Meta's download script puts it, once for all sizes."""
    own = api.open_source(folder)
    (folder / "tokenizer.model").rename(folder.parent / "tokenizer.model")
    found = api.open_source(folder)
    assert found.tokenizer == own.tokenizer
    assert f"The tokenizer is {folder.parent / 'tokenizer.model'}, of the folder" in found.notes[-1]
    grown = with_pieces(found.tokenizer, [Piece("another model's", 0.0, "normal")])
    (folder.parent / "tokenizer.model").write_bytes(grown)
    found = api.open_source(folder)
    assert found.tokenizer is None
    assert "It is left out: it has more pieces." in found.notes[-1]


def test_llama_3s_tokenizer_is_called_by_its_name(folder):
    put_params(folder, vocab_size=-1, use_scaled_rope=False)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    found = api.open_source(folder)
    assert found.tokenizer is None
    assert "is a tiktoken vocabulary, as Llama 3 has, which is not supported" in found.notes[-1]
    assert "{'use_scaled_rope': False} of params.json" in found.notes[0]
    (folder / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a complete sentencepiece model"):
        api.open_source(folder)
    assert api.open_source(folder, "none").tokenizer is None  # is not read then


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(BASE, head_dim=8), "no head_dim=8 beside d_model=24"),
        (replace(BASE, rope_scaling="yarn", rope_factor=2.0), "no rope_scaling=yarn"),
    ],
)
def test_what_the_format_cannot_say_is_refused_and_nothing_written(tmp_path, config, message):
    save(tmp_path / "a", config)
    with pytest.raises(InputError, match=message):
        api.convert(tmp_path / "a", tmp_path / "b", to="meta")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
