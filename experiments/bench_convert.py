"""Speed and memory of conversions, against `cp` of the same bytes.

Command   python experiments/bench_convert.py                            a 2 GB model in float32
          python experiments/bench_convert.py --layers 40 --dtype bfloat16 --folder /data/tmp
Hardware  any with twice the model's size on the disk; nothing runs on an accelerator
Expected  a minute on two cores

Each measurement is a process of its own, so that the peak of its memory (VmHWM) is its own: `cp`
without reflinks, a plain write of as many bytes from memory, Hugging Face -> native and back
without the proof and once with it, and `llama_jax.load` of the native folder against reading its
files into memory (`load` checks the digests as well). All writes end on the disk (fsync), those of
`cp` too. --width and --mlp give the size of a
matrix; the model is random.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from llama_jax.host_memory import keep_freed_memory

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


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def step_cp(folder: Path) -> None:
    """`cp -r`, then fsync."""
    subprocess.run(["cp", "-r", "--reflink=never", folder / "hf", folder / "copy"], check=True)
    sync(folder / "copy")


def step_write(folder: Path) -> None:
    """Write as many bytes as the files have from one buffer, then fsync."""
    buffer = np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8)
    (folder / "written").mkdir()
    for file in (folder / "hf").iterdir():
        with (folder / "written" / file.name).open("wb") as stream:
            for start in range(0, file.stat().st_size, buffer.size):
                stream.write(buffer[: min(buffer.size, file.stat().st_size - start)])
    sync(folder / "written")


def step_read(folder: Path) -> None:
    """Read the files of the native folder, all into memory that is new, as a model's must be."""
    contents = []
    for file in sorted((folder / "native").rglob("*")):
        if file.is_file():
            contents.append(np.fromfile(file, np.uint8))


def step_load(folder: Path) -> None:
    """`llama_jax.load` of the native folder, digests checked."""
    import jax

    import llama_jax

    jax.block_until_ready(llama_jax.load(folder / "native").params)


def _write_only(source: Path, target: Path, to: str) -> None:
    from llama_jax.convert import api, proof
    from llama_jax.convert.formats import FORMATS

    reading, _ = proof.recorded(api.open_source(source), None, lambda size: None)
    with api._staged(target, FORMATS[to]) as folder:
        FORMATS[to].write(reading, folder, target.name, "")


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
    if step not in (step_cp, step_write, step_read):  # imports and start-up are not the disk's
        if step is not step_load:
            keep_freed_memory()  # as `llama-jax convert` does, before jax starts its threads
        import jax

        import llama_jax.convert.api
        import llama_jax.infer.api

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


def main() -> None:
    """Make the model, measure each step, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/llama_jax_bench_convert"))
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--mlp", type=int, default=6912)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=3, help="the median counts (3)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = {
        "cp": (step_cp, "copy"), "write": (step_write, "written"),
        "to native": (step_to_native, "native"),
        "to hf": (step_to_hf, "back"), "proven": (step_proven, "proven"),
        "read": (step_read, None), "load": (step_load, None),
    }  # fmt: skip
    if args.step:
        timed(steps[args.step][0], args.folder)
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    make(args.folder / "hf", args.layers, args.width, args.mlp, args.dtype)
    sync(args.folder / "hf")
    size = sum(f.stat().st_size for f in (args.folder / "hf").iterdir())
    item = 4 if args.dtype == "float32" else 2
    stacked = args.layers * args.width * args.mlp * item
    limit = 2 * max(stacked, 32_000 * args.width * item) + GIB
    print(f"{size / 1e9:.2f} GB, {args.dtype}; two largest tensors and 1 GiB: {limit / 1e9:.2f} GB")
    baseline: dict[str, float] = {}
    for name, (_, output) in steps.items():
        results = []
        for _ in range(args.repeats):
            if output is not None:
                shutil.rmtree(args.folder / output, ignore_errors=True)
            command = [sys.executable, __file__, "--folder", args.folder, "--step", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        result = sorted(results, key=lambda r: r["seconds"])[len(results) // 2]
        baseline.setdefault("cp" if output else "read", result["seconds"])
        ratio = baseline["cp" if output else "read"] / result["seconds"]
        print(
            f"{name:10} {result['seconds']:6.2f} s  {size / result['seconds'] / 1e9:5.2f} GB/s  "
            f"{100 * ratio:4.0f} % of {'cp' if output else 'read'}  "
            f"peak {result['peak'] / 1e9:.2f} GB (idle {result['idle'] / 1e9:.2f})",
            flush=True,
        )
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
