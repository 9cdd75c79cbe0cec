"""Speed and memory of conversions, against `cp` of the same bytes.

Command   python experiments/bench_convert.py                            a 2 GB model in float32
          python experiments/bench_convert.py --layers 40 --dtype bfloat16 --folder /data/tmp
Hardware  any with five times the model's size on the disk; nothing runs on an accelerator
Expected  two minutes on two cores

Each measurement is a process of its own, so that the peak of its memory (VmHWM) is its own: `cp`
without reflinks, Hugging Face -> native and back without the proof and once with it, and
`llama_jax.load` of a converted folder, and of one as training saves it, against reading the files
of the first into memory (`load` checks the digests as well). They take turns, since the speed of a
disk and of new memory changes with what else a machine does; what a step reads is in the page cache
before it begins, and what it writes is on the disk when it ends (fsync), for `cp` too. --width and
--mlp give the size of a matrix; the model is random.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llama_jax.runtime.malloc import keep_freed_memory

GIB = 2**30


def make(folder: Path, layers: int, width: int, mlp: int, dtype: str) -> None:
    """A random Hugging Face folder, written a tensor at a time."""
    import ml_dtypes

    from llama_jax.convert import hf
    from llama_jax.convert.source import Source, tensors
    from llama_jax.model.presets import LLAMA2_7B

    heads = width // 128
    config = replace(
        LLAMA2_7B, d_model=width, d_ff=mlp, num_layers=layers, num_heads=heads,
        num_kv_heads=heads, param_dtype=dtype,  # pyrefly: ignore[bad-argument-type]
    )  # fmt: skip
    shapes = {name: weight.shape for name, _, weight in tensors(config)}
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal(s, np.float32).astype(kind) for name, s in shapes.items()}
    folder.mkdir(parents=True)
    hf.write(Source("native", folder, config, None, lambda name, _: made[name]), folder, "", "")


def save(native: Path, folder: Path) -> None:
    """The same model as training saves it."""
    import llama_jax
    from llama_jax.checkpoint import save_model
    from llama_jax.config_file import model_json
    from llama_jax.data.corpora.tales import story
    from llama_jax.data.tokenizer import train_tokenizer

    model = llama_jax.load(native)
    tokenizer = train_tokenizer((story(i) for i in range(100)), 400)
    save_model(folder, model.params, model_json(model.config), tokenizer.model_bytes, {})


def files(folder: Path) -> list[Path]:
    """All files of a folder, in order."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for file in files(folder):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def warm(folder: Path) -> None:
    """Have all files of a folder in the page cache."""
    buffer = np.empty(4 << 20, np.uint8)
    for file in files(folder):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def step_cp(folder: Path) -> None:
    """`cp -r`, then fsync."""
    subprocess.run(["cp", "-r", "--reflink=never", folder / "hf", folder / "copy"], check=True)
    sync(folder / "copy")


def step_read(folder: Path) -> None:
    """Read the files of the native folder, all into memory that is new, as a model's must be."""
    kept = [np.fromfile(file, np.uint8) for file in files(folder / "native")]
    assert kept


def _load(model: Path) -> None:
    import jax

    import llama_jax

    jax.block_until_ready(llama_jax.load(model).params)


def step_load(folder: Path) -> None:
    """`llama_jax.load` of the native folder, digests checked."""
    _load(folder / "native")


def step_load_saved(folder: Path) -> None:
    """`llama_jax.load` of the same model as training saves it, digests checked."""
    _load(folder / "saved")


def _write_only(source: Path, target: Path, to: str) -> None:
    from etils import epath

    from llama_jax.checkpoint import storage
    from llama_jax.convert import api, proof
    from llama_jax.convert.formats import FORMATS

    reading, _ = proof.recorded(api.open_source(source), None, lambda size: None)
    unfinished = target.with_name(target.name + ".tmp")
    unfinished.mkdir()
    FORMATS[to].write(reading, unfinished, target.name, "")
    storage.rename_durably(epath.Path(unfinished), epath.Path(target))


def step_to_native(folder: Path) -> None:
    """Hugging Face -> native, digests taken, no proof."""
    _write_only(folder / "hf", folder / "native", "native")


def step_to_hf(folder: Path) -> None:
    """Native -> Hugging Face, digests taken, no proof."""
    _write_only(folder / "native", folder / "back", "hf")


def step_proven(folder: Path) -> None:
    """Hugging Face -> native with the proof: read back, digested, logits computed."""
    from llama_jax.convert.api import convert

    convert(folder / "hf", folder / "proven")


def timed(step: Callable[[Path], None], folder: Path) -> None:
    """Run one step in this process and print what it took."""
    if step not in (step_cp, step_read):  # imports and start-up are not the disk's
        if step not in (step_load, step_load_saved):
            keep_freed_memory()  # as `llama-jax convert` does, before jax starts its threads
        import jax

        import llama_jax.convert.api
        import llama_jax.models

        assert llama_jax.convert.api
        jax.block_until_ready(jax.numpy.zeros(1))
    before = peak_memory()
    begin = time.perf_counter()
    step(folder)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak": peak_memory(), "idle": before}))


def peak_memory() -> int:
    """Bytes of this process at their most; getrusage would count those of its parent as well."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Step(NamedTuple):
    """One row of the table."""

    run: Callable[[Path], None]
    reads: str
    writes: str | None
    against: str


STEPS = {
    "cp": Step(step_cp, "hf", "copy", "cp"),
    "to native": Step(step_to_native, "hf", "native", "cp"),
    "to hf": Step(step_to_hf, "native", "back", "cp"),
    "proven": Step(step_proven, "hf", "proven", "cp"),
    "read": Step(step_read, "native", None, "read"),
    "load": Step(step_load, "native", None, "read"),
    "load saved": Step(step_load_saved, "saved", None, "read"),
}


def main() -> None:
    """Make the model, measure each step in turns, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/llama_jax_bench_convert"))
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--mlp", type=int, default=6912)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--turns", type=int, default=5, help="the median counts (5)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        timed(STEPS[args.step].run, args.folder)
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    make(args.folder / "hf", args.layers, args.width, args.mlp, args.dtype)
    step_to_native(args.folder)
    save(args.folder / "native", args.folder / "saved")
    size = sum(f.stat().st_size for f in files(args.folder / "hf"))
    largest = max(args.width * args.mlp, 32_000 * args.width) * (4 if "32" in args.dtype else 2)
    print(
        f"{size / 1e9:.2f} GB, {args.dtype}; the two largest tensors of a layer or outside of them "
        f"and 1 GiB: {(2 * largest + GIB) / 1e9:.2f} GB"
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    for _ in range(args.turns):
        for name, step in STEPS.items():
            if step.writes is not None:
                shutil.rmtree(args.folder / step.writes, ignore_errors=True)
            warm(args.folder / step.reads)
            command = [sys.executable, __file__, "--folder", args.folder, "--step", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(r["seconds"] for r in rs) for name, rs in results.items()}
    for name, step in STEPS.items():
        seconds = sorted(r["seconds"] for r in results[name])
        peak, idle = (max(r[key] for r in results[name]) for key in ("peak", "idle"))
        print(
            f"{name:10} {medians[name]:6.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})  "
            f"{size / medians[name] / 1e9:5.2f} GB/s  "
            f"{100 * medians[step.against] / medians[name]:4.0f} % of {step.against}  "
            f"peak {peak / 1e9:.2f} GB (idle {idle / 1e9:.2f})"
        )
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
