"""`llama-jax quantize`: int8 and int4 model folders, with a report of the quality loss.

Perplexity tells how much worse the model predicts text. The KL divergence from the original model,
and how often both have the same most likely token, tell how much it changed. All three are measured
on the same tokens (as llama.cpp's `perplexity` does with --kl-divergence).
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from llama_jax import __version__
from llama_jax.checkpoint import save_model
from llama_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    Quantization,
    QuantizedModel,
    require,
)
from llama_jax.config_file import model_json
from llama_jax.convert.staging import staged
from llama_jax.data.loader import Loader
from llama_jax.data.prepare import TRAIN, prepare
from llama_jax.model.gptq import Rows, calibrated
from llama_jax.model.llama import hidden
from llama_jax.model.matrix import outer_matrices, rows
from llama_jax.model.quantize import parts, quantized, relative_errors
from llama_jax.models import Model, load, params_digest
from llama_jax.ops.loss import chunk_length, chunks_of
from llama_jax.parallel.mesh import make_mesh
from llama_jax.pretrain import validation_rows
from llama_jax.runtime.console import Progress
from llama_jax.runtime.files import json_text
from llama_jax.runtime.places import expand
from llama_jax.train.evaluate import evaluate
from llama_jax.train.next_token import batch_targets
from llama_jax.train.objective import Batch, Mean

REPORT = "quantization.json"
TEXT = "tales"
"""Data set that is read if no text is named: the embedded stories."""
TOKENS = 1 << 16
"""Maximum number of tokens that are read for the report."""
CALIBRATION = 1 << 16
"""Maximum number of tokens that int4 is calibrated on."""
WORST = 5
"""Number of matrices that the report names."""


@dataclass(frozen=True)
class Change:
    """The effect of rounding on a model, on the same tokens."""

    loss: float
    """Nats per token before."""
    rounded_loss: float
    """After."""
    divergence: float
    """KL(before || after) per token, nats."""
    same_top: float
    """Share of tokens at which both have the same most likely token."""
    targets: int
    """Tokens that were predicted."""

    def to_json(self) -> dict[str, Any]:
        """The form of the report."""
        return {
            "perplexity": {
                "before": math.exp(self.loss),
                "after": math.exp(self.rounded_loss),
                "ratio": math.exp(self.rounded_loss - self.loss),
            },
            "kl": self.divergence,
            "same_top": self.same_top,
            "tokens": self.targets,
        }


def quantize(
    src: str,
    dst: str,
    *,
    weights: Literal["int8", "int4"],
    group: int | None = None,
    kv: Literal["model", "int8"] = "model",
    calibration: str | None = None,
    dataset: str | None = None,
    batch_size: int = 8,
    seq_len: int | None = None,
    text_field: str | None = None,
    beat: Callable[[int, int], None] = lambda done, batches: None,
) -> dict[str, Any]:
    """Write `src`, a model in any format, with quantised matrices; returns the report, which is
    also in the folder.

    Args:
      group: inputs of a matrix that share a scale; None for the default of the type.
      kv: type of keys and values in the cache: the compute type, or int8.
      calibration: a text on whose training split int4 is calibrated (model/gptq.py); None rounds
        each number to the nearest.
      dataset: the text of the report, its validation split; None for that of a run, or `tales`.
      batch_size, seq_len, text_field: as in `pretrain.evaluate_model`.
      beat: called after each batch that was read for the report.

    Raises:
      InputError: the model, the text or the group cannot be used, or `dst` exists.
      CheckpointError: no checkpoint of a run verifies, or writing failed. Nothing is left then.
    """
    quant = Quantization.of(weights, group, kv)
    require(
        calibration is None or weights == "int4",
        f"--calibration {calibration} is for int4: int8 is close enough without",
    )
    require("://" not in dst, f"{dst}: models are quantised on this machine alone; copy the folder")
    target = Path(expand(dst)).absolute()
    require(not target.exists(), f"{target} exists: name a new place")
    require(target.parent.is_dir(), f"{target.parent} does not exist: make that folder first")
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model = load(src)
    require(model.config.quant is None, f"{src} is quantised already: name the original model")
    require(model.config.head == "language", f"{src} is a reward model, which cannot be quantised")
    is_run = (Path(expand(src)) / "checkpoints").is_dir()
    dataset = dataset or (None if is_run else TEXT)
    loader, _ = validation_rows(
        src, model, mesh, dataset=dataset, batch_size=batch_size, seq_len=seq_len,
        text_field=text_field,
    )  # fmt: skip
    # In float32, whose rounding is nothing beside that of the weights.
    config = dataclasses.replace(model.config, dtype="float32")
    small, exact = QuantizedModel.of(model.config, quant), QuantizedModel.of(config, quant)
    with contextlib.closing(loader), jax.set_mesh(mesh):
        packed, length = quantized(model.params, small), loader.batch(0)["tokens"].shape[1]
        if calibration is not None:
            data = DataConfig(dataset=calibration)
            if text_field is not None:
                data = dataclasses.replace(data, text_field=text_field)
            packed = _calibrated(model, packed, exact, data, loader.batch_size, length)
        errors = relative_errors(model.params, packed, small)
        _require_finite(errors, src)
        found = evaluate(
            jax.jit(partial(compare, before=config, after=exact)),
            {"before": model.params, "after": packed},
            loader, mesh, max_batches=-(-TOKENS // (loader.batch_size * length)), beat=beat,
        )  # fmt: skip
    means, counts, _ = found
    change = Change(
        means["before"], means["after"], means["kl"], means["same_top"], int(counts["kl"])
    )
    report = {
        "format_version": 1,
        "source": {"path": os.path.abspath(expand(src)), "digest": params_digest(model.params)},
        "weights": weights,
        "group": quant.group,
        "kv": quant.kv,
        "calibration": calibration,
        "text": dataset or "the run's own",
        "bytes": {"before": size_in_bytes(model.params), "after": size_in_bytes(packed)},
        **change.to_json(),
        "errors": errors,
        "versions": {"llama-jax": __version__},
    }
    _write(target, model, packed, small, report)
    return report


def _calibrated(
    model: Model,
    packed: dict[str, Any],
    small: ModelConfig,
    data: DataConfig,
    batch_size: int,
    length: int,
) -> dict[str, Any]:
    """The same with the matrices of the layers chosen for CALIBRATION tokens of a text."""
    assert model.tokenizer is not None, "its text was read"
    assert small.quant is not None, "it is made for int4"
    embed = outer_matrices({n: a for n, a in packed.items() if n != "layers"}, small)["embed"]
    train = prepare(data, model.tokenizer, seq_len=length)[TRAIN]
    loader = Loader(train, batch_size=batch_size, seed=0)
    text = []
    with contextlib.closing(loader):
        needed = -(-CALIBRATION // (batch_size * length))
        for number in range(min(needed, len(loader))):
            batch = loader.batch(number)
            x = rows(embed, jnp.asarray(batch["tokens"]), small.dtype)
            places = (jnp.asarray(batch[name]) for name in ("positions", "segment_ids"))
            text.append(Rows(x, *places))
    with Progress("calibrating", lambda: None, "layers") as beat:
        found = calibrated(model.params["layers"], text, small, small.quant.group, beat)
    layers = dict(packed["layers"])
    for name in found[0]:
        stack = jax.tree.map(lambda *a: jnp.stack(a), *(layer[name] for layer in found))
        layers |= parts(name, stack)
    return {**packed, "layers": layers}


def _write(
    target: Path, model: Model, packed: dict[str, Any], small: ModelConfig, report: dict[str, Any]
) -> None:
    """The folder: as every model of ours, and the report."""
    assert model.tokenizer is not None, "its text was read"
    config = dataclasses.replace(small, remat="none", attention="auto")
    origin = {"quantized": report["source"]}
    with staged(target, is_file=False) as place:
        made = place / "model"
        save_model(made, packed, model_json(config), model.tokenizer.model_bytes, origin)
        model.usage.write(made)
        (made / REPORT).write_text(json_text(report, indent=1) + "\n")
        for file in list(made.iterdir()):
            file.rename(place / file.name)
        made.rmdir()


def _require_finite(errors: Mapping[str, list[float]], src: str) -> None:
    for name, values in errors.items():
        bad = [layer for layer, error in enumerate(values) if not math.isfinite(error)]
        where = name if name in ("embed", "head") else f"{name} of layer {bad[0] if bad else 0}"
        require(not bad, f"{src}: {where} holds numbers that are not finite, or too large")


def size_in_bytes(params: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params))


def compare(
    params: Mapping[str, Any], batch: Batch, *, before: ModelConfig, after: ModelConfig
) -> dict[str, Mean]:
    """Compares two models with parameters `before` and `after` on the targets of a batch: the
    loss of each, the divergence of the second from the first, and where their most likely tokens
    agree."""
    targets, mask = batch_targets(batch)
    places = {"positions": batch["positions"], "segment_ids": batch["segment_ids"]}
    (x, w), (y, v) = (
        hidden(params[name], batch["tokens"], config=config, **places)
        for name, config in (("before", before), ("after", after))
    )
    B, T = targets.shape
    chunk = chunk_length(B, T, w.shape[1])

    def logp(x: Array, head: Array) -> Array:
        logits = jnp.einsum("BTD,DV->BTV", x, head, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(logits)

    def add(total: dict[str, Array], part: tuple[Array, ...]) -> tuple[dict[str, Array], None]:
        x, y, targets, mask = part
        p, q = logp(x, w), logp(y, v)
        found = {
            "before": -jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0],
            "after": -jnp.take_along_axis(q, targets[..., None], axis=-1)[..., 0],
            "kl": jnp.sum(jnp.exp(p) * (p - q), axis=-1),
            "same_top": (jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)).astype(jnp.float32),
        }
        return {k: total[k] + jnp.sum(jnp.where(mask, f, 0)) for k, f in found.items()}, None

    zeros = dict.fromkeys(("before", "after", "kl", "same_top"), jnp.zeros((), jnp.float32))
    parts = tuple(chunks_of(a, chunk) for a in (x, y, targets, mask))
    totals, _ = jax.lax.scan(add, zeros, parts)
    count = jnp.sum(mask, dtype=jnp.float32)
    return {name: Mean(total, count) for name, total in totals.items()}


def describe(report: dict[str, Any]) -> str:
    """The report as text of a few lines."""
    size, perplexity = report["bytes"], report["perplexity"]
    errors = [
        (error, name if name in ("embed", "head") else f"{name} of layer {layer}")
        for name, values in report["errors"].items()
        for layer, error in enumerate(values)
    ]
    worst = ", ".join(f"{name} {error:.4f}" for error, name in sorted(errors, reverse=True)[:WORST])
    chosen = report["calibration"]
    how = f", chosen for {chosen}" if chosen else ""
    group = f", groups of {report['group']}" if report["group"] else ", a scale for each output"
    cache = "in the compute type" if report["kv"] == "model" else report["kv"]
    return "\n".join(
        (
            f"weights         {report['weights']}{group}{how}; embedding and head int8",
            f"cache           keys and values {cache}",
            f"bytes           {size['before']:,} -> {size['after']:,} "
            f"({size['after'] / size['before']:.1%})",
            f"perplexity      {perplexity['before']:.4f} -> {perplexity['after']:.4f} "
            f"(ratio {perplexity['ratio']:.5f})",
            f"KL divergence   {report['kl']:.2e} nats per token",
            f"same top token  {report['same_top']:.2%}",
            f"on              {report['tokens']:,} tokens of {report['text']}",
            f"largest errors  {worst}",
        )
    )
