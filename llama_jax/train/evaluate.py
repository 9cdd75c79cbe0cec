"""Loss, perplexity and bits per byte of a model on a validation set."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.config import DataConfig, InputError, MeshConfig, require
from llama_jax.config_file import read_config
from llama_jax.data.loader import Loader
from llama_jax.data.packing import target_bytes
from llama_jax.data.prepare import prepare
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.parallel.arrays import check_batch, host_rows, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.hosts import exchange
from llama_jax.train.step import jit_eval_step


@dataclass(frozen=True)
class Evaluation:
    """Averages over the targets of a validation set."""

    loss: float
    """Nats per token."""
    targets: int
    """Tokens that were predicted."""
    bytes: int
    """UTF-8 bytes of the text that they spell."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        try:
            return math.exp(self.loss)
        except OverflowError:  # of a run that diverged, which has to say so and not to end here
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits needed to code one byte of the text; comparable between tokenizers."""
        return self.loss * self.targets / math.log(2) / self.bytes


def evaluate(
    eval_step: Callable,
    params: dict,
    loader: Loader,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    max_batches: int = 0,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run `eval_step` (see step.jit_eval_step) over a loader that does not shuffle.

    max_batches 0 takes all; fewer are spread evenly, since the parts of a mixture follow each
    other. `beat` is called after each batch.
    """
    batches = min(len(loader), max_batches) if max_batches else len(loader)
    total, targets, size = 0.0, 0.0, 0
    with loader.iterate(every=len(loader) // batches) as stream:
        for _ in range(batches):
            batch = next(stream)
            size += target_bytes(batch, tokenizer.byte_lengths, tokenizer.bos_id)
            rows = shard_batch(batch, mesh, loader.batch_size)
            loss, count = jax.device_get(eval_step(params, rows))
            total, targets = total + float(loss), targets + float(count)
            beat()
    mine = (size, len(host_rows(mesh, loader.batch_size)))
    counted = [json.loads(text) for text in exchange(json.dumps(mine))]
    read = sum(rows for _, rows in counted)  # hosts that share rows have counted them all
    size = sum(size for size, _ in counted) * loader.batch_size // read
    return Evaluation(loss=total / max(targets, 1), targets=int(targets), bytes=max(size, 1))


def evaluate_model(
    path: str,
    load: Callable[[str], Any],
    *,
    dataset: str | None = None,
    batch_size: int = 8,
    seq_len: int | None = None,
) -> Evaluation:
    """Evaluate a model, or a run folder's, on a data set's validation split.

    dataset and seq_len default to those of the run. The parameters are split over all devices:
    `load` is `llama_jax.load`, which heeds the mesh in context; this room knows no formats.

    Raises:
      InputError: the model or the data set cannot be used, or has no validation split.
      CheckpointError: no checkpoint verifies.
    """
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        loaded = load(path)
    model, params, tokenizer = loaded.config, loaded.params, loaded.tokenizer
    require(tokenizer is not None, f"{path} has no tokenizer to read text with")
    is_run = (epath.Path(path).expanduser() / "checkpoints").is_dir()
    experiment = read_config(path)[1] if is_run else None
    if experiment is not None:
        data = dataclasses.replace(experiment.data, dataset=dataset or experiment.data.dataset)
    else:
        require(dataset, f"{path} is no run folder: name the text to evaluate on with --data")
        data = DataConfig(dataset=str(dataset))
    seq_len = seq_len or (experiment.seq_len if experiment else model.max_seq_len)
    if not 0 < seq_len <= model.max_seq_len or batch_size < 1:
        raise InputError(
            f"--seq-len {seq_len} must lie between 1 and the context {model.max_seq_len}, and "
            f"--batch-size {batch_size} must be positive"
        )
    batch_size = -(-batch_size // mesh.size) * mesh.size
    check_batch(batch_size, seq_len, 1, mesh)
    held_out = prepare(data, tokenizer, seq_len=seq_len).get("validation")
    if held_out is None:
        raise InputError(f"data set {data.dataset} is too small to have a validation split")
    loader = Loader(held_out, batch_size=batch_size, seed=0, shuffle=False)
    with contextlib.closing(loader), jax.set_mesh(mesh):
        return evaluate(jit_eval_step(model), params, loader, tokenizer, mesh)
