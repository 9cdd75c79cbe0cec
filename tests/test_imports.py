"""Arrows run downward only: which room may import which, and which libraries."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "llama_jax").rglob("*.py"))

# Losses of alignment and what they are fed with: pure functions of arrays, as `ops` is.
LOSSES = {f"align.{name}" for name in ("losses", "advantages", "gauges", "masked", "scores")}
# A room, or a file of it, and what of ours it may import besides itself; the longest name counts.
ARROWS = {
    "errors": set(),
    "config_model": {"errors"},
    "config": {"errors", "config_model"},
    "config_align": {"config"},
    "config_file": {"config", "config_align", "runtime.files", "runtime.places"},
    "experiment": {"config"},
    "runtime": {"config"},
    "checkpoint": {"config", "runtime"},
    "kernels": set(),
    "ops": {"kernels"},
    "parallel": {"config"},
    "model": {
        "config", "ops", "parallel.arrays", "parallel.devices", "parallel.fsdp", "parallel.rules",
    },
    "data": {"config", "runtime.files", "runtime.places"},
    "convert": {
        "config", "config_file", "model", "ops", "checkpoint", "data.tokenizer",
        "data.sentencepiece_proto", "data.tokenizer_json", "data.vocabulary_repairs",
        "runtime.files", "runtime.places",
    },
    "models": {
        "config", "config_file", "convert", "checkpoint", "model", "parallel.rules",
        "parallel.arrays",
        "data.tokenizer", "runtime.files", "runtime.places",
    },
    "adapters": {
        "config", "config_file", "model.by_row", "models", "convert", "checkpoint",
        "runtime.places",
    },
    "export": {
        "config", "models", "model", "convert.staging", "runtime.files", "runtime.places",
    },
    "export_litert": {
        "config", "export", "convert.staging", "runtime.places",
    },
    "train": {
        "config", "config_file", "convert.usage", "models", "model", "ops", "parallel", "data",
        "checkpoint", "runtime",
    },
    "pretrain": {
        "config", "config_file", "train", "infer", "models", "data", "parallel", "runtime.places",
    },
    "infer": {"config", "models", "model", "ops", "parallel"},
    "align": {
        "config", "config_align", "config_file", "experiment", "train", "infer", "models", "data",
        "model", "ops", "parallel", "checkpoint", "runtime",
    },
    **{name: {"ops"} for name in LOSSES},
    "evals": {
        "config", "config_file", "align", "train.metrics", "train.samples", "models", "infer",
        "data", "model", "ops", "parallel", "runtime",
    },
    "serve": {"config", "adapters", "models", "infer", "data", "runtime.files"},
    "tpu": {
        "config", "config_align", "config_file", "experiment", "pretrain", "train", "align",
        "infer", "model", "ops.int8_cache", "parallel", "kernels", "runtime.files",
        "runtime.places",
    },
    "quantize": {
        "config", "config_file", "pretrain", "train", "models", "convert", "checkpoint", "model",
        "data", "ops", "parallel", "runtime.console", "runtime.files", "runtime.places",
    },
    "chat_terminal": {"config", "infer", "models", "data", "runtime.files"},
    "cli_train": {"config", "config_align", "evals.in_training", "experiment", "runtime"},
    "cli_experiments": {"config", "experiment", "runtime.files", "runtime.places"},
    "cli_eval": {"config", "evals", "pretrain", "runtime"},
    "cli_serve": {"config", "serve", "runtime"},
    "cli_options": set(),
    "cli_models": {
        "config", "cli_options", "adapters", "export", "export_litert", "quantize", "convert",
        "checkpoint", "runtime",
    },
    "cli": {
        "config", "chat_terminal", "cli_eval", "cli_experiments", "cli_models", "cli_options",
        "cli_serve", "cli_train", "serve", "evals", "align", "pretrain", "tpu", "train", "infer",
        "models", "data", "runtime",
    },
    "__init__": {"infer.api", "infer.sampling_params", "models", "model.llama"},
    "__main__": {"cli", "runtime.interrupts"},
}  # fmt: skip

ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}
DATA_LIBRARIES = {
    "tensorflow_datasets", "grain", "sentencepiece", "array_record", "apache_beam", "datasets",
}  # fmt: skip
NOWHERE = {"tensorflow", "torch", "transformers", "vllm", "ray", "experiments", "tests"}
FORBIDDEN_LIBRARIES = {
    "data": ACCELERATED,
    "runtime.files": ACCELERATED | DATA_LIBRARIES,
    "config": ACCELERATED | DATA_LIBRARIES,
    "runtime.places": ACCELERATED | DATA_LIBRARIES,
    "kernels": DATA_LIBRARIES | {"flax", "optax", "orbax"},
    "ops": DATA_LIBRARIES | {"flax", "optax", "orbax"},
    "model": DATA_LIBRARIES,
    "parallel": DATA_LIBRARIES,
    "train.step": DATA_LIBRARIES,
    "train.next_token": DATA_LIBRARIES,
    **{name: DATA_LIBRARIES | {"flax", "optax", "orbax"} for name in LOSSES},
}
LINEN = {"model.llama", "parallel.rules"}


def name_of(path):
    """`model.llama` for llama_jax/model/llama.py, `model` for its __init__.py."""
    parts = path.relative_to(ROOT / "llama_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path) for path in FILES}


def within(name, room):
    return name == room or name.startswith(room + ".")


def imported(source):
    """Every module that the source imports anywhere, functions included, as absolute names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def violations(name, source):
    """What module `name` imports and must not."""
    room = max((r for r in ARROWS if within(name, r)), key=len, default=None)
    assert room is not None, f"{name} is in no room of the table"
    libraries = NOWHERE | {
        library
        for limited, forbidden in FORBIDDEN_LIBRARIES.items()
        if within(name, limited)
        for library in forbidden
    }
    for target in imported(source):
        top, _, rest = target.partition(".")
        if top == "llama_jax":
            own = within(rest, room.split(".")[0])
            package_itself = rest.startswith("__")
            if not (own or package_itself or any(within(rest, to) for to in ARROWS[room])):
                yield target
        elif top in libraries or (target.startswith("flax.linen") and name not in LINEN):
            yield target


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_arrow_is_allowed(path):
    assert list(violations(name_of(path), path.read_text())) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("model.layer", "from llama_jax.train import loop"),
        ("model.layer", "from llama_jax.parallel.mesh import make_mesh"),
        ("ops.norm", "from llama_jax.config import ModelConfig"),
        ("kernels.flash_attention", "import llama_jax.ops.attention"),
        ("infer.generate", "from llama_jax import train"),
        ("infer.generate", "from llama_jax.data.tokenizer import Tokenizer"),
        ("train.loop", "def f():\n    from llama_jax.infer import generate"),
        ("data.loader", "import jax.numpy as jnp"),
        ("data.loader", "def f():\n    import jax"),
        ("train.step", "import grain"),
        ("model.weights", "import flax.linen as nn"),
        ("model.weights", "from flax import linen"),
        ("train.loop", "import tensorflow as tf"),
        ("cli", "import experiments.quickstart"),
        ("config", "from llama_jax.runtime import files"),
        ("data.loader", "from llama_jax.runtime import hosts"),
        ("runtime.files", "import jax"),
    ],
)
def test_a_forbidden_arrow_is_found(name, source):
    assert len(list(violations(name, source))) == 1


def test_experiments_use_the_package_alone():
    for path in (ROOT / "experiments").rglob("*.py"):
        assert "tests" not in {name.split(".")[0] for name in imported(path.read_text())}, path


BLOCK = """
import sys
class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked in this test", name=name)
sys.meta_path.insert(0, Blocked)
"""


def run(code, *blocked):
    """Run code in a fresh interpreter in which the blocked libraries are as if not installed."""
    code = BLOCK.format(blocked=blocked) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def imports(names):
    dotted = ("llama_jax" if name == "__init__" else f"llama_jax.{name}" for name in sorted(names))
    return "".join(f"import {name}\n" for name in dotted)


def test_nothing_needs_tensorflow_or_torch():
    run(imports(MODULES), "tensorflow", "torch", "transformers")


def test_the_model_runs_where_only_jax_flax_and_optax_are():
    alone = {
        name
        for name in MODULES
        if name in ("train.step", "train.next_token", *LOSSES)
        or any(within(name, r) for r in ("kernels", "ops", "model", "parallel"))
    }
    assert {"train.next_token", "model.llama", "ops.loss", *LOSSES} <= alone
    run(imports(alone), *DATA_LIBRARIES, *NOWHERE, "orbax", "tyro", "tensorboardX", "tqdm")


def test_the_package_and_the_command_line_import_nothing_heavy():
    heavy = run("import llama_jax, llama_jax.cli, sys; print(*sys.modules)")
    assert "llama_jax.cli" in heavy
    assert not {"jax", "flax", "numpy", "tyro", "grain", "tensorflow_datasets"} & set(heavy)


def test_no_message_names_what_is_not_ours_on_a_package_index():
    """Whoever registers the name would have their code installed."""
    named = [path.name for path in FILES if re.search(r"pip install \W*llama", path.read_text())]
    assert named == []
