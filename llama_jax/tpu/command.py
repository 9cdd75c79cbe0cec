"""`llama-jax plan`: its options, the experiment they make, and what is printed."""

import argparse
import difflib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_jax.config import (
    DataConfig,
    InputError,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    require,
)
from llama_jax.config_align import (
    DpoConfig,
    GrpoConfig,
    PolicyConfig,
    PpoConfig,
    RewardConfig,
    SftConfig,
)
from llama_jax.experiment import load_experiment, override
from llama_jax.model.presets import PRESETS
from llama_jax.model.weights import parameter_count
from llama_jax.runtime.places import expand
from llama_jax.tpu import topology as topology_of
from llama_jax.tpu.arithmetic import BYTES
from llama_jax.tpu.decode_plan import WEIGHTS, decode_plan, decode_text
from llama_jax.tpu.plan import Plan, as_json, plan
from llama_jax.tpu.ppo_plan import ppo_json, ppo_plan, ppo_text
from llama_jax.tpu.report import front_text, text
from llama_jax.tpu.search import front_json, search
from llama_jax.tpu.topology import Topology

PROG = "llama-jax plan"
_ONE_STEP = {kind.stage: kind for kind in (TrainConfig, SftConfig, RewardConfig, DpoConfig)}
_POLICIES = {kind.stage: kind for kind in (PpoConfig, GrpoConfig)}
EXPERIMENTS = {**_ONE_STEP, **_POLICIES}
"""Experiment classes of the stages whose steps can be planned."""
EPILOG = """\
Every option of an experiment can follow, as for `llama-jax train`: --batch-size (global),
--seq-len, --mesh.tensor, --mesh.fsdp, --mesh.sequence, --optimizer.moment-dtype, --accumulate ...

topologies: v2-N, v3-N, v4-N, v5p-N and tpu7x-N count TensorCores, two a chip; v5e-N (v5litepod-N)
and v6e-N count chips; v5e:16x16 and tpu7x:4x4x8 give the shape; x2 behind any of them means two
slices. Each core of v2, v3 and tpu7x is a device of its own.

examples:
  llama-jax plan --model llama2-70b --topology v5p-128
  llama-jax plan --model llama2-70b --topology v5e-256 --mesh.tensor 4 --batch-size 256 --json
  llama-jax plan experiments/tpu/llama2_7b_32k.py --topology v5p-128
  llama-jax plan --model llama2-13b --topology v6e-64 --search
  llama-jax plan --model llama2-7b --topology v5e-64 --stage reward --batch-size 512
  llama-jax plan --model llama2-7b --topology v5e-64 --stage ppo --batch-size 512
  llama-jax plan --model llama2-70b --topology v5e-16 --decode --batch-size 32
  llama-jax plan --model llama2-7b --topology v5e-1 --decode --batch-size 8 --weights int8 --kv int8
  llama-jax plan experiments/tpu/llama2_7b.py --topology v5e-256 --save gs://BUCKET/steps

--save FOLDER adds the compiled step as an entry of jax's compilation cache, and `llama-jax train
--compilation-cache FOLDER` takes it if its name comes out the same: of the program (every setting
of the step; `steps`, by the learning rate; not --workdir, --seed, --checkpoint or --data), jax's
and libtpu's versions, XLA_FLAGS, LIBTPU_INIT_ARGS, the slice and the order of its devices. A miss
costs the compilation, as without it. Hits are tested on CPU devices, never yet on a real TPU.
"""


def run(arguments: Sequence[str], parser_class: type[argparse.ArgumentParser]) -> str:
    """Returns the text that the command prints.

    Raises InputError for options that are unknown or do not fit, with the nearest or the values.
    """
    parser = parser_class(
        prog=PROG,
        usage=f"{PROG} (EXPERIMENT.py | --model NAME) --topology NAME [options]",
        description="Predict the memory, time and bottleneck of a training step on a TPU slice: "
        "compiles the step that `llama-jax train` runs with the TPU's own compiler, on this CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--topology", metavar="NAME", help="such as v5e-256")
    parser.add_argument(
        "--stage",
        choices=sorted(EXPERIMENTS),
        default="train",
        help="the command that runs the experiment (train)",
    )
    parser.add_argument("--remat", metavar="POLICY", help="as --model.remat (full with --model)")
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat policies and batch sizes"
    )
    parser.add_argument(
        "--compile",
        type=int,
        default=3,
        metavar="N",
        help="number of best candidates to compile (3)",
    )
    parser.add_argument("--decode", action="store_true", help="plan generation, not training")
    parser.add_argument("--weights", choices=WEIGHTS, help="with --decode: type of the matrices")
    parser.add_argument("--kv", choices=["int8"], help="with --decode: type of the cache")
    parser.add_argument(
        "--page", type=int, default=128, metavar="N", help="with --decode: tokens a page (128)"
    )
    parser.add_argument("--save", metavar="FOLDER", help="store the compiled step for training")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = list(arguments)
    path = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else []
    args, rest = parser.parse_known_args(arguments)
    typo = difflib.get_close_matches("--topology", rest, n=1)
    require(
        args.topology,
        f"{PROG} needs --topology NAME, such as v5e-256" + "".join(f", not {t}" for t in typo),
    )
    topology = topology_of.parse(args.topology)
    if args.remat:
        rest += ["--model.remat", args.remat]
    require(
        bool(path) != bool(args.model),
        f"{PROG} needs either an experiment file or --model NAME (one of {', '.join(PRESETS)})",
    )
    require(
        not (args.save and (args.search or args.decode)),
        f"{PROG} --save stores one training step: drop --search or --decode",
    )
    require(
        not ((args.save or args.search) and args.stage in _POLICIES),
        f"{PROG} --stage {args.stage} plans iterations: drop --save or --search",
    )
    if args.save and "://" not in args.save:
        args.save = os.path.abspath(expand(args.save))
    if path:
        config = load_experiment([*path, *rest], PROG, EXPERIMENTS[args.stage])
    else:
        config = override(preset_experiment(args.model, topology, args.stage), rest, PROG)
    require(
        args.decode or not (args.weights or args.kv),
        f"{PROG} --weights and --kv are for generation: add --decode",
    )
    if args.decode:
        planned = decode_plan(config, topology, weights=args.weights, kv=args.kv, page=args.page)
        return json.dumps(planned) if args.json else decode_text(planned)
    if config.mesh.slice == 1 and topology.slices > 1:
        config = replace(config, mesh=replace(config.mesh, slice=topology.slices))
        rest += ["--mesh.slice", str(topology.slices)]
    if args.search:
        front = search(config, topology, compiled=args.compile)
        if not args.json:
            return front_text(front)
        return json.dumps([front_json(row) for row in front])
    if isinstance(config, PolicyConfig):
        found = ppo_plan(config, topology)
        return json.dumps(ppo_json(found)) if args.json else ppo_text(found)
    planned = plan(config, topology, args.save)
    if args.json:
        return json.dumps(as_json(planned))
    return text(planned) + (saved_text(planned, args.save, path, rest) if args.save else "")


def saved_text(p: Plan, folder: str, path: Sequence[str], options: Sequence[str]) -> str:
    """Tells what --save wrote, and how training finds it."""
    saved = p.facts.get("saved")
    if saved is None:
        return "\nNothing was saved: there is no program."
    experiment = [*(path or ["EXPERIMENT.py"]), *options, "--compilation-cache", folder]
    return (
        f"\nSaved {saved['path']}, {saved['bytes'] / 1e6:.1f} MB. To train with it, all settings "
        f"of the step the same:\n  {shlex.join(['llama-jax', 'train', *experiment])}"
    )


def preset_experiment(name: str, topology: Topology, stage: str = "train") -> TrainConfig:
    """One row per device at the model's own context, recomputing whole layers; one pair for a
    reward model and for DPO.

    Raises InputError for an unknown model, with the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.0)
        raise InputError(f"model {name!r} is unknown; nearest are {', '.join(near)}")
    head = "score" if stage == "reward" else "language"
    model = replace(PRESETS[name], remat="full", head=head)
    common = {
        "workdir": "unused",
        "init_from": "unused",
        "batch_size": topology.devices,
        "seq_len": model.max_seq_len,
        "model": model,
        "data": DataConfig(dataset="unused"),
    }
    if stage in _POLICIES:  # section 3.4.3 of the paper; answers of a quarter of the context
        # Weights that are whole for generation shall take a quarter of a device at most.
        weights = parameter_count(model) * BYTES[model.dtype]
        splits = [n for n in (1, 2, 4, 8) if model.num_kv_heads % n == topology.devices % n == 0]
        enough = [
            n for n in splits if 4 * weights <= n * topology.chip.hbm_bytes / topology.chip.devices
        ]
        tensor = min(enough, default=splits[-1])
        constant = OptimizerConfig(learning_rate=1e-6, schedule="constant", warmup_steps=0)
        values: dict[str, Any] = common | {
            "batch_size": 512,
            "steps": 400,
            "minibatch": 64,
            "max_new_tokens": model.max_seq_len // 4,
            "optimizer": constant,
            "helpfulness": "unused",
            "safety": "unused",
            "mesh": MeshConfig(fsdp=-1, tensor=tensor),
        }
        if stage == "ppo":
            values["value_optimizer"] = constant
        return _POLICIES[stage](**values)
    optimizer = OptimizerConfig(learning_rate=3e-4)
    return _ONE_STEP[stage](**common, steps=100_000, optimizer=optimizer)
