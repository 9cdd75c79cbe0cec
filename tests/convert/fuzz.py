"""Mutations of every kind of file that is read, and what may come of them: see test_fuzz.py.

    python -m tests.convert.fuzz READER SEED FIRST COUNT FOLDER

reads COUNT mutations and prints those that end in anything but a value, an InputError or a
CheckpointError, take more than 2 s of processor time or 1 GiB, or write. Mutation i of a seed is
always the same; `... READER SEED i 1 FOLDER` repeats one alone and leaves its files in FOLDER.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llama_jax.checkpoint import CheckpointError, verify
from llama_jax.checkpoint import manifest as mf
from llama_jax.config import AdaptedModel, InputError, LoraConfig, Quantization, QuantizedModel
from llama_jax.config_file import read_config
from llama_jax.convert import api, hf, llama2c, peft
from llama_jax.convert.llama2c_tokenizer import read_tokenizer, write_tokenizer
from llama_jax.convert.source import tensors
from llama_jax.convert.usage import Usage
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.quantize import quantized
from llama_jax.model.weights import adapter_weights, layer_weights
from llama_jax.models import load
from llama_jax.train.metrics import read_metrics
from tests.convert import gguf_bytes
from tests.convert.models import BASE, GROUPED, V, random_params, save, source, tokenizer

SECONDS = 2.0
BYTES = 1 << 30
SMALL = replace(BASE, num_layers=1, rope_theta=10_000.0)


class Reader(NamedTuple):
    """A kind of file: how a sound folder is made, which of its files change, how it is read."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    """Patterns of those that are mutated."""
    read: Callable[[Path], Any]


# ---- Sound files


def native(folder: Path) -> None:
    save(folder, SMALL)
    Usage(end_ids=(5,), chat_template="{{ x }}", generation={"top_p": 0.5}).write(folder)


def int8(folder: Path) -> None:
    config = QuantizedModel.of(SMALL, Quantization.of("int8"))
    save(folder, config, quantized(random_params(SMALL), config))


def adapters(folder: Path) -> None:
    """A PEFT folder, and the model that it belongs to inside it."""
    folder.mkdir()
    save(folder / "base", SMALL)
    lora = LoraConfig(rank=2, targets=("q", "down"))
    rows = adapter_weights(AdaptedModel.of(SMALL, lora), layer_weights(SMALL))
    factors = {name: np.ones((SMALL.num_layers, *w.shape), np.float32) for name, w in rows.items()}
    peft.write(folder, lora, factors, SMALL, "base")


def converted(to: str, name: str = "model") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save(folder.parent / "native", SMALL)
        if to in ("gguf", "llama2c"):
            folder.mkdir()
            api.convert(folder.parent / "native", folder / name, to=to)
        else:
            api.convert(folder.parent / "native", folder, to=to)
        shutil.rmtree(folder.parent / "native")

    return make


def sharded(folder: Path) -> None:
    hf.SHARD_BYTES = 20_000
    converted("hf")(folder)


def chat(folder: Path) -> None:
    """A Hugging Face folder with all the files that say something of text."""
    save(folder.parent / "native", replace(SMALL, vocab_size=V + 8))
    api.convert(folder.parent / "native", folder, to="hf")
    shutil.rmtree(folder.parent / "native")
    said = {
        "added_tokens.json": {"<|im_end|>": V},
        "generation_config.json": {"eos_token_id": [2, V], "temperature": 0.5},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}},
        "tokenizer_config.json": {
            "chat_template": [{"name": "default", "template": "{{ x }}"}], "pad_token": "<pad>",
            "added_tokens_decoder": {str(V + 1): {"content": "<pad>", "special": True}},
        },
    }  # fmt: skip
    for name, values in said.items():
        (folder / name).write_text(json.dumps(values))


def json_tokenizer(folder: Path) -> None:
    chat(folder)
    (folder / "tokenizer.model").unlink()


def gguf_parts(folder: Path) -> None:
    """GGUF by hand, with matrices in several formats, in two parts."""
    folder.mkdir()
    config = replace(GROUPED, num_layers=1)
    kinds = ("F32", "F16", "BF16", "Q8_0")
    infos = [gguf_bytes.infos_of(source(config), kinds[i % 4])[i] for i in range(12)]
    values = gguf_bytes.settings_of(config) | gguf_bytes.vocabulary_of(tokenizer().vocabulary)
    for i, part in enumerate((infos[:7], infos[7:])):
        split = {"split.no": (gguf_bytes.U16, i), "split.count": (gguf_bytes.U16, 2)}
        content = gguf_bytes.file_bytes((values if i == 0 else {}) | split, part)
        (folder / f"m-{i + 1:05}-of-00002.gguf").write_bytes(content)


def llama2c_files(folder: Path) -> None:
    folder.mkdir()
    for version in "012":
        llama2c.write(source(replace(GROUPED, num_layers=1)), folder, f"{version}.bin", version)


def tokenizers(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(tokenizer().model_bytes)
    write_tokenizer(folder / "tokenizer.bin", tokenizer().model_bytes, V)


def metrics(folder: Path) -> None:
    folder.mkdir()
    lines = [json.dumps({"step": i, "train/loss": 1.5 / (i + 1)}) for i in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


# ---- Reading all of it


def read_source(path: Path) -> None:
    found = api.open_source(path)
    for name, layer, weight in tensors(found.config):
        assert found.read(name, layer).shape == weight.shape
    if found.tokenizer is not None:
        Tokenizer.from_bytes(found.tokenizer).encode("Once upon a time")


def read_any(pattern: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            read_source(path)

    return read


def read_native(folder: Path) -> None:
    read_config(folder)
    read_source(folder)
    load(folder)
    verify(folder)


def read_tokenizers(folder: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.bin"):
        if name.endswith("model"):
            found = Tokenizer.load(folder / name)
        else:
            found = Tokenizer.from_bytes(read_tokenizer(folder / name)[0])
        ids = found.encode("Once upon a time\n", bos=True, eos=True)
        found.decode(ids)
        assert len(found.vocabulary.pieces) == found.vocab_size


READERS = {
    "safetensors": Reader(converted("hf"), ("*.safetensors",), read_source),
    "hf_index": Reader(sharded, ("*.index.json", "model-00001*"), read_source),
    "hf_config": Reader(converted("hf"), ("config.json",), read_source),
    "hf_text": Reader(chat, ("*token*.json", "generation_config.json"), read_source),
    "tokenizer_json": Reader(json_tokenizer, ("tokenizer.json",), read_source),
    "tokenizers": Reader(tokenizers, ("tokenizer.*",), read_tokenizers),
    "pth": Reader(converted("meta"), ("*.pth",), read_source),
    "params": Reader(converted("meta"), ("params.json", "tokenizer.model"), read_source),
    "gguf": Reader(gguf_parts, ("*.gguf",), read_any("*00001*.gguf")),
    "llama2c": Reader(llama2c_files, ("*.bin",), read_any("[012].bin")),
    "native": Reader(
        native, ("config.json", "manifest.json", "tokenizer.model", "usage.json"), read_native
    ),
    "int8": Reader(int8, ("config.json", "manifest.json"), read_native),
    "peft": Reader(adapters, ("adapter_*",), load),
    "zarr": Reader(
        converted("native"), ("params/*/.zarray", "params/*/0*", "params/_*"), read_native
    ),
    "ocdbt": Reader(native, ("params/manifest.ocdbt", "params/**/d/*", "params/_*"), read_native),
    "report": Reader(converted("hf"), ("report.json",), api.verify),
    "metrics": Reader(metrics, ("metrics.jsonl",), lambda f: read_metrics(f / "metrics.jsonl")),
}


# ---- Mutations

NUMBERS = [0, 1, 2, 7, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 2**70, 10**400, 0.5, -1e308, 1e308,
    float("nan"), float("inf"), "", "x", "x" * 5000, "\ud800", "../../../etc/passwd", "/dev/zero",
    "a\0b", [], {}, [[]] * 50, [None] * 3, {"a": {"b": []}}, list(range(200)),
]  # fmt: skip


def mutated(raw: bytes, rng: random.Random, name: str) -> bytes:
    """The content of a file after one to four changes."""
    if name.endswith(("json", ".zarray", "_METADATA")) and rng.random() < 0.7:
        with contextlib.suppress(ValueError):
            return mutated_json(json.loads(raw), rng, name)
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        near = len(data) if rng.random() < 0.3 else min(len(data), 4000)
        at = rng.randint(0, near) if rng.random() < 0.8 else rng.randint(max(0, near - 300), near)
        size = rng.choice([1, 1, 2, 4, 8, 30, 500])
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            number = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice([2, 4, 8])]
            data[at : at + len(number)] = number
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * rng.choice([1, 2, 50])
        elif kind == 5:
            data[at:at] = rng.randbytes(size)
        elif kind == 6 and rng.random() < 0.3:
            del data[at:]
        elif kind == 7:
            data[at : at + size] = rng.choice([b"\0", b"\xff", b"9", b"["]) * size
    return bytes(data)


def mutated_json(values: Any, rng: random.Random, name: str) -> bytes:
    """Some values of a document exchanged, removed or added; a manifest is signed again."""
    for _ in range(rng.randint(1, 3)):
        node, key = values, None
        for _ in range(rng.randint(1, 5)):
            inner = node if key is None else node[key]
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))[:50])
            if not isinstance(inner, dict | list) or not keys:
                break
            node, key = inner, rng.choice(keys)
            if not isinstance(node[key], dict | list):
                break
        if key is None:
            continue
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(["", "x", "..", "a/b", str(key) + "2"])] = rng.choice(VALUES)
        elif kind == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = rng.choice([node[key] + 1, node[key] * 2, -node[key], rng.choice(NUMBERS)])
        else:
            node[key] = rng.choice(VALUES)
    if name == mf.FILENAME and isinstance(values, dict) and rng.random() < 0.8:
        values.pop("digest", None)
        with contextlib.suppress(ValueError, TypeError):
            values["digest"] = mf._canonical_digest(values)
    sys.set_int_max_str_digits(0)
    text = json.dumps(values, ensure_ascii=True)
    sys.set_int_max_str_digits(4300)
    if rng.random() < 0.05:
        text = text.replace(":", ": " + "[" * 100_000, 1)
    return text.encode()


def exchanged(file: Path, rng: random.Random) -> None:
    """Something else in the place of a file."""
    file.unlink()
    kind = rng.randrange(8)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.symlink_to("/dev/zero")
    elif kind == 2:
        file.symlink_to(file.name)
    elif kind == 3:
        file.mkdir()
    elif kind == 4:
        with file.open("wb") as out:
            out.truncate(900 << 20)
    elif kind == 5:
        file.write_bytes(b"")
    elif kind == 6:
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


# ---- What may come of them


class Slow(BaseException):
    """More processor time than a reader may take."""


def _late(*_: Any) -> None:
    raise Slow


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """2 s of processor time, 1 GiB more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def run(name: str, seed: str, first: int, count: int, place: Path) -> int:
    """How many of the mutations end as none may; they are printed."""
    reader, sound, work = READERS[name], place / "sound", place / "work"
    if not sound.exists():
        reader.make(sound)
    reader.read(sound)  # compiles what is compiled once
    wrote: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple) -> None:
        if watching and (
            event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
            or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        ):
            wrote.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    signal.signal(signal.SIGPROF, _late)
    failures = 0
    for i in range(first, first + count):
        rng = random.Random(f"{seed} {name} {i}")
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(sound, work)
        files = sorted({f for pattern in reader.files for f in work.glob(pattern) if f.is_file()})
        for file in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
            if rng.random() < 0.06:
                exchanged(file, rng)
            else:
                file.write_bytes(mutated(file.read_bytes(), rng, file.name))
        (place / "current").write_text(str(i))
        watching = True
        try:
            with limited():
                reader.read(work)
        except (InputError, CheckpointError) as error:
            problem = "several lines" if "\n" in str(error) else ""
            problem = "a long message" if len(str(error)) > 3000 else problem
        except Slow:
            problem = f"more than {SECONDS} s\n{traceback.format_exc()[-1500:]}"
        except Exception:
            problem = traceback.format_exc()[-1500:]
        else:
            problem = ""
        finally:
            watching = False
        problem = f"wrote {wrote[:3]}" if wrote else problem
        wrote.clear()
        if problem:
            failures += 1
            print(f"{name}, seed {seed}, mutation {i}: {problem}", flush=True)
    return failures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, seed, first, count, folder = sys.argv[1:]
    sys.exit(min(run(kind, seed, int(first), int(count), Path(folder)), 99))
