"""What a folder says besides weights: kept where a format has a place, or named as left out."""

import json
from dataclasses import replace

import pytest

import llama_jax
from llama_jax.config import InputError
from llama_jax.convert import api, hf_text
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import Tokenizer
from tests.convert.models import BASE, V, save, tokenizer

ROWS = V + 8
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}{% endfor %}"
CHAT = {
    "added_tokens.json": {"<|im_start|>": V, "<|im_end|>": V + 1},
    "generation_config.json": {
        "bos_token_id": 1, "eos_token_id": [2, V + 1], "do_sample": True, "temperature": 0.6,
        "transformers_version": "4.40.0",
    },
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"},
                                "additional_special_tokens": ["<|im_start|>"]},
    "tokenizer_config.json": {
        "eos_token": "<|im_end|>", "pad_token": "<pad>", "chat_template": TEMPLATE,
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True}, f"{V + 1}": {"content": "<|im_end|>"},
            f"{V + 2}": {"content": "<pad>", "special": True},
            f"{V + 3}": {"content": "<tool>", "special": False},
        },
    },
}  # fmt: skip
CONFIG = {"eos_token_id": V + 1, "bos_token_id": 1}
USAGE = Usage(
    end_ids=(V + 1, 2)[:1],
    chat_template=TEMPLATE,
    special_tokens={"eos_token": "<|im_end|>", "pad_token": "<pad>"},
    generation={"do_sample": True, "temperature": 0.6},
)


def put(folder, files, **more):
    """Side files of a folder, and its tokenizer; None leaves a file out, bytes are bytes."""
    folder.mkdir(exist_ok=True)
    for name, content in ({"tokenizer.model": tokenizer().model_bytes} | files | more).items():
        if content is not None:
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / name).write_bytes(raw)
    return folder


def read(folder, named="own", config=CONFIG, rows=ROWS):
    return hf_text.read(folder, config, rows, named).own_ends


def test_a_chat_model_keeps_its_tokens_ends_template_and_settings(tmp_path):
    words = read(put(tmp_path, CHAT))
    assert words.usage == USAGE
    found = Tokenizer.from_bytes(words.tokenizer).vocabulary.pieces
    assert found[:V] == tokenizer().vocabulary.pieces
    assert [(p.text, p.kind) for p in found[V:]] == [
        ("<|im_start|>", "control"), ("<|im_end|>", "control"), ("<pad>", "control"),
        ("<tool>", "user_defined"),
    ]  # fmt: skip
    assert len(words.notes) == 1
    assert words.notes[0].startswith("Added tokens are pieces of the tokenizer: '<|im_start|>'")


def test_a_plain_folder_says_nothing(tmp_path):
    words = read(put(tmp_path, {}), config={"eos_token_id": 2, "bos_token_id": 1})
    assert (words.tokenizer, words.usage, words.notes) == (tokenizer().model_bytes, Usage(), ())


@pytest.mark.parametrize(
    ("files", "config", "said"),
    [
        ({"generation_config.json": {"eos_token_id": [2, ROWS, "x"]}}, {}, "names [408, 'x'] as"),
        ({"generation_config.json": b"[" * 9999}, {}, "generation_config.json is nested too deep"),
        ({"tokenizer_config.json": b"version https://git-lfs.github.com/spec/v1\n"}, {}, "Git LFS"),
        ({"special_tokens_map.json": [1]}, {}, "special_tokens_map.json must hold a JSON object"),
        ({"tokenizer_config.json": {"add_eos_token": True}}, {}, "add_eos_token=true"),
        ({"tokenizer_config.json": {"add_prefix_space": False}}, {}, "add_prefix_space=false"),
        ({"tokenizer.json": {"added_tokens": 3}}, {}, "added_tokens is 3, not a list"),
        ({}, {"bos_token_id": 7}, "bos_token_id=7 and the tokenizer 1, which was taken"),
        ({"chat_template.jinja": b"\xff"}, {}, "chat_template.jinja"),
        ({"added_tokens.json": {"x": ROWS + 1}}, {}, "were left out: 'x' (id 409)"),
        (
            {"tokenizer_config.json": {"chat_template": [
                {"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}},
            {}, "further chat templates (['tool_use'])",
        ),
    ],
)  # fmt: skip
def test_what_is_odd_costs_itself_alone_and_is_said(tmp_path, files, config, said):
    words = read(put(tmp_path, files), config=config)
    assert words.tokenizer == tokenizer().model_bytes
    assert said in " ".join(words.notes)
    assert words.usage.end_ids == ()


def test_templates_of_their_own_files_come_first(tmp_path):
    put(tmp_path, CHAT, **{"chat_template.jinja": b"own"})
    assert read(tmp_path).usage.chat_template == "own"
    (tmp_path / "chat_template.jinja").unlink()
    put(tmp_path, {"chat_template.json": {"chat_template": "json"}})
    assert read(tmp_path).usage.chat_template == "json"


def test_no_bos_where_the_source_has_none(tmp_path):
    assert not read(
        put(tmp_path, {"tokenizer_config.json": {"add_bos_token": False}})
    ).usage.add_bos


def test_a_damaged_tokenizer_is_refused_and_one_of_another_kind_left_out(tmp_path):
    put(tmp_path, {"tokenizer.model": b"version https://git-lfs.github.com/spec/v1\n"})
    with pytest.raises(
        InputError, match=r"LFS pointer .*; or name another with `llama-jax convert"
    ):
        read(tmp_path)
    words = read(tmp_path, tokenizer().model_bytes)  # not even looked at
    assert (words.tokenizer, words.notes) == (tokenizer().model_bytes, ())
    assert read(tmp_path, None).tokenizer is None
    put(tmp_path, {"tokenizer.model": b"IQ== 0\nIg== 1\n"})
    words = read(tmp_path)
    assert words.tokenizer is None
    assert "is a tiktoken vocabulary, as Llama 3 has" in words.notes[-1]


def test_tokenizer_json_is_read_where_there_is_no_other(tmp_path):
    save(tmp_path / "a", BASE)
    api.convert(tmp_path / "a", tmp_path / "hf", to="hf")
    (tmp_path / "hf/tokenizer.model").unlink()
    source = api.open_source(tmp_path / "hf")
    assert source.notes == ("The tokenizer was read from tokenizer.json.",)
    found = Tokenizer.from_bytes(source.tokenizer)
    assert found.encode("Once upon a time") == tokenizer().encode("Once upon a time")


# ---- Through the formats


@pytest.fixture
def chat(tmp_path):
    """A Hugging Face folder of a chat model with more rows than tokens."""
    save(tmp_path / "native", replace(BASE, vocab_size=ROWS, rope_theta=10_000.0))
    api.convert(tmp_path / "native", tmp_path / "chat", to="hf")
    put(tmp_path / "chat", CHAT)
    config = json.loads((tmp_path / "chat/config.json").read_text())
    (tmp_path / "chat/config.json").write_text(json.dumps(config | CONFIG))
    (tmp_path / "chat/tokenizer.json").unlink()
    return tmp_path / "chat"


def test_native_and_hugging_face_keep_everything(tmp_path, chat):
    report = api.convert(chat, tmp_path / "n")
    assert any("ids 404 to 407 have no text" in note for note in report["notes"])
    model = llama_jax.load(tmp_path / "n")
    assert model.usage == USAGE
    api.convert(tmp_path / "n", tmp_path / "again", to="hf")
    assert llama_jax.load(tmp_path / "again").usage == USAGE
    assert api.open_source(tmp_path / "again").tokenizer == model.tokenizer.model_bytes
    generation = json.loads((tmp_path / "again/generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, V + 1]
    assert generation["temperature"] == 0.6
    report = api.convert(tmp_path / "n", tmp_path / "bare", to="hf", tokenizer="none")
    assert not report["tokenizer"]
    assert "has no place for it: the chat template" in report["notes"][-1]
    assert llama_jax.load(tmp_path / "bare").usage.generation == USAGE.generation


def test_meta_and_llama2c_name_what_they_leave_out(tmp_path, chat):
    report = api.convert(chat, tmp_path / "m", to="meta")
    (note,) = [note for note in report["notes"] if "no place" in note]
    for part in ("ends of text", "chat template", "special tokens", "settings of generation"):
        assert part in note
    with pytest.raises(InputError, match=r"cannot hold this tokenizer \(--tokenizer none omits it"):
        api.convert(chat, tmp_path / "l.bin", to="llama2c")
    report = api.convert(chat, tmp_path / "l.bin", to="llama2c", tokenizer="none")
    assert any("llama2.c has no place" in note for note in report["notes"])


def test_gguf_keeps_ends_template_and_pad(tmp_path, chat):
    pytest.importorskip("gguf", reason="writing GGUF needs the extra [gguf]")
    report = api.convert(chat, tmp_path / "m.gguf", to="gguf")
    (note,) = [note for note in report["notes"] if "GGUF has no place" in note]
    assert "the settings of generation" in note
    source = api.open_source(tmp_path / "m.gguf")
    assert source.usage == replace(USAGE, generation={}, special_tokens={"pad_token": "<pad>"})
    assert Tokenizer.from_bytes(source.tokenizer).vocab_size == V + 4  # as before it was padded
