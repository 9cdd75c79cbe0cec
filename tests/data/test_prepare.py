import fcntl
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from llama_jax.config import DataConfig, InputError
from llama_jax.data import shards, sources, textfiles
from llama_jax.data.corpora import tales
from llama_jax.data.loader import Loader
from llama_jax.data.packing import pack, target_bytes
from llama_jax.data.prepare import _lock, prepare, resolve_tokenizer, train_tokenizer_on
from llama_jax.data.split import in_validation
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer


def records(mixture):
    loader = Loader(mixture, batch_size=1, seed=0, shuffle=False)
    return [{k: v[0] for k, v in loader.batch(i).items()} for i in range(len(loader))]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def jsonl(path: Path, count: int = 60) -> str:
    path.write_text("".join(json.dumps({"text": tales.story(i)}) + "\n" for i in range(count)))
    return str(path)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sources, "_STORIES", 10)


def test_records_are_the_packed_documents(prepared, tokenizer):
    for split, count in (("train", 400), ("validation", 20)):
        texts = [tales.story(i, split) for i in range(count)]
        expected = list(pack(tokenizer.encode_batch(texts, bos=True, eos=True), 64))
        assert prepared[split].num_records == len(expected)
        assert_same(records(prepared[split]), expected)


def test_cache_is_used(prepared, tokenizer, cache, monkeypatch):
    monkeypatch.setattr(shards, "build", None)
    config = DataConfig(dataset="tales:400", cache_dir=cache)
    assert prepare(config, tokenizer, seq_len=64) == prepared


def test_a_corpus_that_is_known_is_not_read_again(tokenizer, tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl")
    os.utime(path, (1e9, 1e9))
    config = DataConfig(dataset=path, cache_dir=str(tmp_path / "cache"), workers=1)
    before = prepare(config, tokenizer, seq_len=64)
    monkeypatch.setattr(textfiles, "open_file", None)
    assert prepare(config, tokenizer, seq_len=64) == before


def test_fingerprint_follows_everything_that_changes_records(tokenizer, cache, tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    other = train_tokenizer((tales.story(i) for i in range(100)), 350)

    def fingerprint(dataset=path, tok=tokenizer, seq_len=64):
        config = DataConfig(dataset=dataset, cache_dir=cache, workers=1)
        return prepare(config, tok, seq_len=seq_len)["train"].fingerprint

    first = fingerprint()
    assert fingerprint() == first
    changed = [fingerprint(tok=other), fingerprint(seq_len=32)]
    jsonl(tmp_path / "a.jsonl", 61)
    changed.append(fingerprint())
    assert len({first, *changed}) == 4


def test_mixture_keeps_weights_and_drops_parts_without_validation(tokenizer, cache, tmp_path):
    text = tmp_path / "one.txt"
    text.write_text(tales.story(0))
    config = DataConfig(dataset=f"tales:40=3,{text}=1", cache_dir=cache, workers=1)
    mixtures = prepare(config, tokenizer, seq_len=64)
    assert mixtures["train"].weights == (0.75, 0.25)
    assert [part.name for part in mixtures["train"].parts] == ["tales", "one"]
    assert [part.name for part in mixtures["validation"].parts] == ["tales"]
    assert mixtures["validation"].weights == (1.0,)


def held_out(count):
    texts = (f"The keeper wrote {i} lines of weather." for i in itertools.count())
    return list(itertools.islice(filter(in_validation, texts), count))


def test_a_corpus_that_would_all_be_held_out_trains(tokenizer, tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held_out(2)))
    config = DataConfig(dataset=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    with caplog.at_level("INFO"):
        mixtures = prepare(config, tokenizer, seq_len=64)
    assert set(mixtures) == {"train"}
    assert "2 documents in 1 row of 64 tokens; nothing is held out" in caplog.messages[-1]
    assert resolve_tokenizer(config, 280).vocab_size == 280
    output = str(tmp_path / "t")
    assert train_tokenizer_on([config.dataset], 280, output).vocab_size == 280


def test_what_was_found_is_counted_each_time(tokenizer, tmp_path, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    jsonl(folder / "a.jsonl")
    (folder / "README.txt").write_text("stories")
    config = DataConfig(dataset=str(folder), cache_dir=str(tmp_path / "cache"), workers=1)
    stories = [tales.story(i) for i in range(60)]
    splits = [[text for text in stories if in_validation(text) == held] for held in (False, True)]
    said = []
    for name, texts in zip(("train", "validation"), splits, strict=True):
        rows = len(list(pack(tokenizer.encode_batch(texts, bos=True, eos=True), 64)))
        said.append(f"{name}: {len(texts)} documents in {rows} rows of 64 tokens")
    for _ in range(2):
        with caplog.at_level("INFO"):
            mixture = prepare(config, tokenizer, seq_len=64)["train"]
        assert caplog.messages[-1] == f"data corpus: {'; '.join(said)}"
    left = f"data {folder}: 1 file read; left out: README.txt (licence or readme)"
    assert caplog.messages.count(left) == 1
    assert mixture.passes(3 * mixture.num_records) == "corpus 3 times"
    (part,) = mixture.parts
    assert part.text_bytes == part.piece_bytes == sum(len(text.encode()) for text in splits[0])


def test_bytes_are_those_of_the_text_whatever_the_tokenizer_makes_of_it(tmp_path):
    """A ligature, runs of spaces and U+2581 do not survive; without a prefix no space comes."""
    texts = [f"Of {i} \ufb01elds.   One \u2581 more" for i in range(90)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache"), workers=1)
    sizes = {
        split: sum(len(t.encode()) for t in texts if in_validation(t) == (split == "validation"))
        for split in ("train", "validation")
    }
    for rules in (
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {},
    ):
        for split, mixture in prepare(config, trained(texts, **rules), seq_len=32).items():
            loader = Loader(mixture, batch_size=1, seed=0, shuffle=False)
            tokenizer = trained(texts, **rules)
            spelled = sum(
                target_bytes(loader.batch(i), tokenizer.byte_lengths, tokenizer.bos_id)
                for i in range(len(loader))
            )
            assert spelled != sizes[split]
            assert round(spelled * mixture.bytes_per_piece_byte) == sizes[split]


def trained(texts, **rules):
    model = io.BytesIO()
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **rules}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=290, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, num_threads=1, minloglevel=2, **settings,
    )  # fmt: skip
    return Tokenizer.from_bytes(model.getvalue())


def test_waiting_for_another_program_is_said(tmp_path, caplog):
    other = (tmp_path / "a.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.2, other.close).start()
    with caplog.at_level("INFO"), _lock(tmp_path / "a"):
        assert caplog.messages == [f"waiting for another program that prepares {tmp_path / 'a'}"]


def test_nothing_to_train_on(tokenizer, cache, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="data a holds no text"):
        prepare(DataConfig(dataset=str(path), cache_dir=cache), tokenizer, seq_len=64)


def test_one_document_is_trained_on_whatever_its_hash(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    for held_out in (False, True):
        text = next(t for i in range(100) if in_validation(t := f"story {i}") == held_out)
        path.write_text(text)
        config = DataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache"))
        mixtures = prepare(config, tokenizer, seq_len=64)
        assert list(mixtures) == ["train"]
        (record,) = records(mixtures["train"])
        assert tokenizer.decode(record["tokens"][record["segment_ids"] > 0].tolist()) == text


def test_bad_document_leaves_nothing_that_is_used(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"no": 1}\n')
    config = DataConfig(dataset=str(path), cache_dir=str(tmp_path / "cache"), workers=1)
    for _ in range(2):
        with pytest.raises(InputError, match="line 2"):
            prepare(config, tokenizer, seq_len=64)
    assert not list((tmp_path / "cache").rglob("dataset_info.json"))


def test_done_shards_are_kept_and_half_ones_redone(tokenizer, tmp_path, monkeypatch, small_chunks):
    config = DataConfig(dataset="tales:40", cache_dir=str(tmp_path / "a"), workers=1)
    whole = records(prepare(config, tokenizer, seq_len=64)["train"])

    config = DataConfig(dataset="tales:40", cache_dir=str(tmp_path / "b"), workers=1)
    write_shard, calls = shards.write_shard, []

    def dies_at_third(job):
        calls.append(job.path)
        if len(calls) == 3:
            Path(job.path).parent.joinpath(".train-00002.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_shard(job)

    monkeypatch.setattr(shards, "write_shard", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, tokenizer, seq_len=64)
    resumed = records(prepare(config, tokenizer, seq_len=64)["train"])
    assert_same(resumed, whole)
    assert len(calls) == 3 + 3  # 5 shards, 2 of them done before
    assert not list((tmp_path / "b").glob("*.parts"))


def test_unwritable_cache(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    config = DataConfig(dataset="tales:40", cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cache_dir .* cannot be written"):
        prepare(config, tokenizer, seq_len=64)


def test_tokenizer_is_trained_once_or_loaded(tokenizer, tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl")
    config = DataConfig(dataset=path, cache_dir=str(tmp_path / "cache"))
    trained = resolve_tokenizer(config, 330)
    assert trained.vocab_size == 330
    monkeypatch.setattr("llama_jax.data.prepare.train_tokenizer", None)
    assert resolve_tokenizer(config, 330) == trained

    tokenizer.save(tmp_path / "given.model")
    named = DataConfig(dataset=path, tokenizer=str(tmp_path / "given.model"))
    assert resolve_tokenizer(named, 400) == tokenizer
    with pytest.raises(InputError, match=r"400 pieces, more than model.vocab_size=399"):
        resolve_tokenizer(named, 399)


@pytest.mark.slow
def test_processes_and_beam_write_the_same_records(tokenizer, tmp_path, small_chunks):
    mixtures = []
    for name, workers, runner in (("1", 1, None), ("2", 2, None), ("beam", 1, "DirectRunner")):
        config = DataConfig(dataset="tales:120", cache_dir=str(tmp_path / name), workers=workers)
        mixtures.append(prepare(config, tokenizer, seq_len=64, beam_runner=runner))
    for split in ("train", "validation"):
        one, two, beam = (m[split] for m in mixtures)
        assert one.fingerprint == two.fingerprint == beam.fingerprint
        expected = records(one)
        assert_same(records(two), expected)
        assert_same(records(beam), expected)


SCRIPT = """
import sys
from llama_jax.config import DataConfig
from llama_jax.data.prepare import prepare
from llama_jax.data.tokenizer import Tokenizer
config = DataConfig(dataset="tales:9000", cache_dir=sys.argv[1], workers=2)
mixtures = prepare(config, Tokenizer.load(sys.argv[2]), seq_len=256)
print(mixtures["train"].num_records, "jax" in sys.modules)
"""
"""Without a guard for the main module, which whoever writes a script leaves out."""


def start(tmp_path, tokenizer, cache):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tokenizer.save(tmp_path / "t.model")
    command = [sys.executable, str(script), str(cache), str(tmp_path / "t.model")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_two_processes_at_once(tokenizer, tmp_path):
    both = [start(tmp_path, tokenizer, tmp_path / "cache") for _ in range(2)]
    answers = {process.communicate(timeout=300)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert answers.pop().split()[1] == "False"
    assert len(list((tmp_path / "cache").rglob("dataset_info.json"))) == 1


@pytest.mark.slow
def test_killed_preparation_is_taken_up(tokenizer, tmp_path):
    cache = tmp_path / "cache"
    process = start(tmp_path, tokenizer, cache)
    deadline = time.monotonic() + 200
    while not list(cache.glob("*.parts/train-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {p.name: p.stat().st_mtime_ns for p in cache.glob("*.parts/train-*")}
    assert done
    assert not list(cache.rglob("dataset_info.json"))
    again = start(tmp_path, tokenizer, cache)
    assert again.communicate(timeout=300)[0].split()[1] == "False"
    assert again.returncode == 0
    (final,) = cache.glob("*/packed/1.0.0")
    kept = {p.stat().st_mtime_ns for p in final.glob("packed-train*")}
    assert set(done.values()) <= kept
