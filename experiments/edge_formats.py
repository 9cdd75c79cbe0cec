"""A model in the formats of small machines: bytes, tokens/s, and whether the text is ours.

Command   python experiments/edge_formats.py runs/quickstart --llama2c ../llama2.c
          python experiments/edge_formats.py          stories-15m with random weights
Hardware  a quiet machine; every program may use all its cores
Expected  two minutes on two CPU cores; LOG.md has figures

Each format is written by `llama-jax convert`, after `llama-jax quantize` where its row says int8,
and run by a program of its own: GGUF by llama.cpp (the package xllamacpp; keys and values in
float32), llama2.c by `run` and `runq` (compiled from run.c and runq.c in the folder --llama2c),
StableHLO and LiteRT by the script that `convert` puts beside them. What cannot run here is listed
with the reason.

All continue the same prompts greedily, for --tokens tokens or to the end of the text. `same` counts
the tokens before the first that differs from those of `llama_jax.generate` with the same numbers:
the file read back where we read its format, else the model that was written. llama.cpp and `runq`
round what quantised weights are multiplied with to int8 as well, so that their texts part from ours
where two tokens are nearly as likely. Speed is that of decoding; the median of all prompts counts.
Bytes are those of the files that the program reads, without a tokenizer that lies beside.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_jax.config import InputError

PROMPTS = ("Once upon a time", "One day, a little dog", "There was a girl who")
CORES = os.cpu_count() or 1
SPEED = re.compile(r"([0-9.]+) tokens/s|achieved tok/s: ([0-9.]+)")
Said = tuple[str, float]
"""A text, the prompt included, and the tokens/s of its decoding."""


class Format(NamedTuple):
    """A row of the table."""

    to: str
    """As `llama-jax convert --to` has it."""
    weights: str
    """"int8" if the model is quantised before."""
    program: str
    files: tuple[str, ...]
    """What the program reads, in a folder of its own."""
    needs: tuple[str, ...]
    """Packages that write and run it."""


_LLAMA_CPP = ("llama.cpp", ("m.gguf",), ("gguf", "xllamacpp"))
_STABLEHLO = ("run.py", ("step.jax", "weights.npz"), ("flatbuffers",))
_LITERT = ("run.py", ("model.tflite",), ("litert_converter", "ai_edge_litert"))
FORMATS = {
    "GGUF Q8_0": Format("gguf:q8_0", "", *_LLAMA_CPP),
    "GGUF Q4_0": Format("gguf:q4_0", "", *_LLAMA_CPP),
    "GGUF Q4_K": Format("gguf:q4_k", "", *_LLAMA_CPP),
    "llama2.c float32": Format("llama2c", "", "run", ("m.bin",), ()),
    "llama2.c int8": Format("llama2c:2", "", "runq", ("m.bin",), ()),
    "StableHLO float32": Format("stablehlo", "", *_STABLEHLO),
    "StableHLO int8": Format("stablehlo", "int8", *_STABLEHLO),
    "LiteRT float32": Format("litert", "", *_LITERT),
    "LiteRT int8": Format("litert", "int8", *_LITERT),
}


# ---- Models


def make(folder: Path, tokenizer: str | None) -> Path:
    """stories-15m with random weights, far apart enough that no choice hangs on a last bit.

    It never draws what ends a text or is none: bytes, EOS, rows without a piece.
    """
    import jax

    from llama_jax.checkpoint import save_model
    from llama_jax.config_file import model_json
    from llama_jax.data.corpora.tales import story
    from llama_jax.data.tokenizer import NUM_RESERVED, Tokenizer, train_tokenizer
    from llama_jax.model.llama import init_params
    from llama_jax.model.presets import STORIES_15M

    pieces = (
        Tokenizer.load(tokenizer)
        if tokenizer
        else train_tokenizer((story(i) for i in range(1000)), 2048)
    )
    params = jax.tree.map(lambda w: 3 * w, init_params(jax.random.key(0), STORIES_15M))
    embed = params["embed"].at[2:NUM_RESERVED].set(0).at[pieces.vocab_size :].set(0)
    params["embed"] = embed.at[0].set(0)
    save_model(folder / "made", params, model_json(STORIES_15M), pieces.model_bytes, {})
    return folder / "made"


def write(model: Path, form: Format, folder: Path) -> tuple[Path, Path]:
    """What the program reads, and what we read of it; InputError if it cannot be written."""
    from llama_jax.convert.api import convert
    from llama_jax.export import export_program
    from llama_jax.export_litert import export_litert

    if form.to in ("stablehlo", "litert"):
        export = export_program if form.to == "stablehlo" else export_litert
        export(os.fspath(model), os.fspath(folder))
        return folder, model
    folder.mkdir()
    convert(model, folder / form.files[0], to=form.to)
    return folder / form.files[0], folder / form.files[0]


# ---- Programs


class Ours:
    """A model that we generate with: what each program is held against."""

    def __init__(self, path: Path, prompts: Sequence[str], tokens: int):
        import jax

        import llama_jax

        model = llama_jax.load(path)
        if model.tokenizer is None:
            raise InputError(f"{path} has no tokenizer: add one with llama-jax convert --tokenizer")
        self.model, self.tokenizer = model, model.tokenizer
        self.weights = jax.block_until_ready(model.prepared)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
        self.prompts = [self.tokenizer.encode(p, bos=model.usage.add_bos) for p in prompts]
        context = model.config.max_seq_len
        self.counts = [min(tokens, context - len(ids)) for ids in self.prompts]
        """Tokens after each prompt."""

    def said(self, number: int, count: int) -> tuple[list[int], float]:
        """The ids of a prompt and at most `count` that continue it, and the seconds they took."""
        from llama_jax.infer.generate import generate_tokens
        from llama_jax.infer.sampling_params import SamplingParams

        greedy = SamplingParams(
            max_new_tokens=count, temperature=0.0, stop_ids=self.model.usage.end_ids
        ).for_vocabulary(self.tokenizer.vocab_size, self.tokenizer.eos_id)
        ids, config = self.prompts[number], self.model.config
        begin = time.perf_counter()
        (new,) = generate_tokens(self.weights, [ids], greedy, config=config, seeds=[0])
        return ids + new, time.perf_counter() - begin

    def speed(self) -> float:
        """Tokens/s of decoding, the median over the prompts."""
        found = []
        for number, count in enumerate(self.counts):
            ids, _ = self.said(number, count)
            self.said(number, 1)  # both are compiled now
            whole, short = (min(self.said(number, n)[1] for _ in range(3)) for n in (count, 1))
            found.append((len(ids) - len(self.prompts[number]) - 1) / (whole - short))
        return statistics.median(found)


def run_py(folder: Path, prompt: str, tokens: int) -> Said:
    """The script beside a program."""
    return _printed([sys.executable, folder / "run.py", prompt, tokens])


def run_llama2c(binary: Path, model: Path, prompt: str, positions: int) -> Said:
    """llama2.c's `run` or `runq`, which goes on after EOS as if it were a word."""
    options = ["-z", model.with_name("tokenizer.bin"), "-t", 0, "-n", positions, "-i", prompt]
    text, speed = _printed([binary, model, *options])
    return text.split("\n</s>\n")[0], speed


def run_llama_cpp(path: Path, prompt: str, tokens: int) -> Said:
    """llama.cpp, in a process of its own: it ends the process if it cannot load a file."""
    call = [sys.executable, __file__, "--gguf", path, prompt, tokens]
    found = json.loads(_done(call).stdout.splitlines()[-1])
    return prompt + found["content"], found["timings"]["predicted_per_second"]


def _printed(call: Sequence[Any]) -> Said:
    done = _done(call)
    found = SPEED.search(done.stderr)
    assert found is not None, f"{call[0]} tells its speed on stderr: {done.stderr}"
    return done.stdout.removesuffix("\n"), float(found[1] or found[2])


def _done(call: Sequence[Any]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in call], capture_output=True, text=True, errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": str(CORES)}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, call))} ended with {done.returncode}: {done.stderr}")
    return done


def serve_gguf(path: str, prompt: str, tokens: int) -> None:
    """Print what llama.cpp's server answers, as a line of JSON."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = CORES
    params.verbosity = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=600) as answer:
        print(json.dumps(json.loads(answer.read())))


def compiled(source: Path, folder: Path) -> Path:
    """llama2.c's program, as its `make runomp` builds it."""
    binary = folder / source.stem
    flags = ["-Ofast", "-fopenmp", "-march=native"]
    _done(["cc", *flags, "-o", binary, source, "-lm"])
    return binary


# ---- The table


def agreeing(text: str, ids: Sequence[int], tokenizer: Any) -> int:
    """How many of the ids a text begins with."""
    return max(n for n in range(len(ids) + 1) if text.startswith(tokenizer.decode(ids[:n])))


def missing(form: Format, llama2c: Path | None) -> str:
    """Why a format cannot be written or run here; empty if it can."""
    absent = [name for name in form.needs if importlib.util.find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if form.program in ("run", "runq"):
        if llama2c is None:
            return f"{form.program}.c not named (--llama2c)"
        if not (llama2c / f"{form.program}.c").is_file():
            return f"no {form.program}.c in {llama2c}"
        return "" if shutil.which("cc") else "no C compiler (cc)"
    return ""


def table(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows, as they are found."""
    from llama_jax.quantize import quantize

    model = args.model or make(folder, args.tokenizer)
    reference = Ours(model, args.prompts, args.tokens)
    yield _own("ours, float32", reference)
    small, why = folder / "int8", ""
    chosen = {name: form for name, form in FORMATS.items() if args.only in name}
    try:
        quantize(os.fspath(model), os.fspath(small), weights="int8", dataset="tales:64")
        yield _own("ours, int8", Ours(small, args.prompts, args.tokens))
    except InputError as error:
        why = str(error)
    for number, (name, form) in enumerate(chosen.items()):
        reason = missing(form, args.llama2c) or (why if form.weights == "int8" else "")
        if not reason:
            try:
                yield _row(name, form, small if form.weights else model, folder / str(number), args)
                continue
            except InputError as error:
                reason = str(error)
        yield {"format": name, "program": form.program, "skipped": reason}


def _own(name: str, own: Ours) -> dict[str, Any]:
    return {
        "format": name,
        "program": "llama_jax",
        "bytes": own.bytes,
        "tokens_per_second": own.speed(),
    }


def _row(name: str, form: Format, model: Path, folder: Path, args: Any) -> dict[str, Any]:
    written, read = write(model, form, folder)
    in_c = form.to.startswith("llama2c")
    binary = compiled(args.llama2c / f"{form.program}.c", folder) if in_c else None
    own = Ours(read, args.prompts, args.tokens)
    speeds, same, total, equal = [], 0, 0, True
    for number, (prompt, count) in enumerate(zip(args.prompts, own.counts, strict=True)):
        first = len(own.prompts[number])
        if binary is not None:
            text, speed = run_llama2c(binary, written, prompt, first - 1 + count)
        else:
            run = run_llama_cpp if form.program == "llama.cpp" else run_py
            text, speed = run(written, prompt, count)
        ids, _ = own.said(number, count)
        speeds.append(speed)
        same += max(agreeing(text, ids, own.tokenizer) - first, 0)
        total += len(ids) - first
        equal &= text == own.tokenizer.decode(ids)
    return {
        "format": name,
        "program": form.program,
        "bytes": sum((folder / file).stat().st_size for file in form.files),
        "tokens_per_second": statistics.median(speeds),
        "same": same,
        "of": total,
        "equal": equal,
    }


def main(argv: list[str]) -> None:
    """Parse, measure, print."""
    if argv[:1] == ["--gguf"]:  # this program as the process that llama.cpp runs in
        serve_gguf(argv[1], argv[2], int(argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="(stories-15m with random weights)")
    parser.add_argument("--tokenizer", metavar="PATH", help="of random weights (one of tales)")
    parser.add_argument("--llama2c", type=Path, metavar="FOLDER", help="holds run.c and runq.c")
    parser.add_argument("--tokens", type=int, default=200, help="after each prompt (200)")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, metavar="TEXT")
    parser.add_argument("--only", default="", metavar="WORD", help="formats with it in their names")
    parser.add_argument("--json", action="store_true", help="a JSON object for each row")
    args = parser.parse_args(argv)
    if not args.json:
        print(f"{'format':19s}{'program':11s}{'bytes':>12s}{'tokens/s':>10s}  same")
    with tempfile.TemporaryDirectory() as folder:
        for row in table(args, Path(folder)):
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            said = f"{row['format']:19s}{row['program']:11s}"
            if "skipped" in row:
                print(f"{said}skipped: {row['skipped']}", flush=True)
                continue
            said += f"{row['bytes']:12,}{row['tokens_per_second']:10,.1f}"
            if "same" in row:
                said += f"  {row['same']} of {row['of']}{', equal' if row['equal'] else ''}"
            print(said, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"edge_formats: {error}")
