"""`llama-jax verify`, `convert` and `quantize`: commands on model files."""

import argparse
from collections.abc import Callable
from typing import Any

from llama_jax.cli_options import add_json, add_model, add_text_field
from llama_jax.config import require
from llama_jax.runtime.console import Progress, at_work
from llama_jax.runtime.files import json_text
from llama_jax.runtime.malloc import keep_freed_memory
from llama_jax.runtime.places import naming


def add_commands(command: Callable[..., Any]) -> None:
    """Declare the commands; `command(name, run, help)` makes a parser."""
    sub = command("verify", _verify, "check every digest, and the proof of a converted model")
    sub.add_argument("path", metavar="PATH")
    add_json(sub)

    sub = command(
        "convert", _convert, "convert weights from one format to another, and check the result"
    )
    sub.add_argument("source", metavar="SRC", help="a model in any format, which is detected")
    sub.add_argument("target", metavar="DST", help="a new folder or file")
    sub.add_argument(
        "--to",
        default="native",
        metavar="FORMAT",
        help="native, hf, meta, llama2c or gguf; FORMAT:VARIANT where it has some (native); peft "
        "for the adapters of a run; stablehlo or litert for a program that runs without llama-jax",
    )
    sub.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that SRC's adapters belong to (the one SRC names); with --to peft, the "
        "name that PEFT opens it by",
    )
    sub.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.model, tokenizer.json, tokenizer.bin, or none (the source's own)",
    )
    sub.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="type to write (the source's)"
    )
    add_json(sub)

    sub = command(
        "quantize", _quantize, "store weights in int8 or int4, and report the loss of quality"
    )
    add_model(sub)
    sub.add_argument("target", metavar="OUT", help="a new model folder, read like any other")
    sub.add_argument(
        "--weights", required=True, choices=["int8", "int4"], help="type of the matrices"
    )
    sub.add_argument(
        "--group", type=int, metavar="N", help="inputs that share a scale in int4: 32 or 128 (32)"
    )
    sub.add_argument("--kv", choices=["int8"], help="keep the key/value cache in int8 too (off)")
    sub.add_argument(
        "--calibration",
        metavar="DATASET",
        help="text to calibrate int4 on, by GPTQ (none: plain rounding)",
    )
    sub.add_argument(
        "--data",
        metavar="DATASET",
        help="text to measure on, as for eval (the run's own, or tales)",
    )
    sub.add_argument("--batch-size", type=int, default=8, metavar="B", help="rows at a time (8)")
    sub.add_argument("--seq-len", type=int, metavar="T", help="tokens in a row (the run's own)")
    add_text_field(sub)
    add_json(sub)


def _convert(args: argparse.Namespace) -> None:
    keep_freed_memory()
    with at_work("starting", args.source):
        from llama_jax import adapters
        from llama_jax.convert.api import convert, describe

    settings = {"to": args.to, "tokenizer": args.tokenizer, "dtype": args.dtype}
    with naming(args.target):
        if args.to == "peft":
            require(
                args.dtype is None and args.tokenizer is None,
                "--to peft writes float32 adapters and no tokenizer: leave out --dtype and "
                "--tokenizer",
            )
            lines = adapters.write_peft(args.source, args.target, base=args.base)
            print(json_text({"said": lines}) if args.json else "\n".join(lines))
            return
        if args.to in _PROGRAMS:
            lines = _program(args)
            print(json_text({"said": lines}) if args.json else "\n".join(lines))
            return
        if adapters.is_adapter(args.source):
            report = adapters.merge_adapters(args.source, args.target, base=args.base, **settings)
        else:
            require(args.base is None, f"--base: {args.source} holds no adapters")
            report = convert(args.source, args.target, **settings)
    print(json_text(report) if args.json else describe(report))


_PROGRAMS = {"stablehlo": ("float32", "bfloat16"), "litert": ("float32",)}
"""Formats that are programs, and the types that they compute in."""


def _program(args: argparse.Namespace) -> list[str]:
    """Write one; what was written, in lines."""
    types = _PROGRAMS[args.to]
    require(
        args.dtype in (None, *types) and args.tokenizer is None and args.base is None,
        f"--to {args.to} supports --dtype {' or '.join(types)}, and no --tokenizer or --base: "
        "convert the model with those first",
    )
    if args.to == "litert":
        from llama_jax.export_litert import export_litert

        return export_litert(args.source, args.target)
    from llama_jax.export import export_program

    return export_program(args.source, args.target, dtype=args.dtype or "float32")


def _quantize(args: argparse.Namespace) -> None:
    with at_work(f"loading {args.model}", args.model) as end, naming(args.target):
        from llama_jax import quantize

        with Progress("reading", end) as beat:
            report = quantize.quantize(
                args.model, args.target, weights=args.weights, group=args.group,
                kv=args.kv or "model", calibration=args.calibration, dataset=args.data,
                batch_size=args.batch_size, seq_len=args.seq_len, text_field=args.text_field,
                beat=beat,
            )  # fmt: skip
    print(json_text(report) if args.json else quantize.describe(report))


def _verify(args: argparse.Namespace) -> int:
    with at_work(f"verifying {args.path}", args.path):
        from llama_jax.checkpoint import verify
        from llama_jax.convert import api as convert

    proof = convert.verify(args.path)
    if proof is not None and proof["format"] != "native":
        print(json_text(proof) if args.json else convert.describe_verification(proof))
        return 0 if proof["ok"] else 1
    reports = verify(args.path)
    if args.json:
        rows = [
            {"path": str(r.path), "step": r.step, "ok": r.ok, "problem": r.problem,
             "arrays": r.arrays}
            for r in reports
        ]  # fmt: skip
        print(json_text({"ok": all(r.ok for r in reports), "checked": rows, "proof": proof}))
    else:
        for r in reports:
            if r.problem:
                print(f"{r.path}: {r.problem}")
            for name, problem in r.arrays.items():
                if problem:
                    print(f"{r.path}: {name}: {problem}")
            if r.ok:
                print(f"{r.path}: {len(r.arrays)} arrays, all digests agree")
        if proof is not None:
            print(convert.describe_verification(proof))
    return 0 if all(r.ok for r in reports) and (proof is None or proof["ok"]) else 1
