"""Pretraining: next-token prediction on text (Llama 2, section 2)."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.config import DataConfig, InputError, MeshConfig, TrainConfig, require
from llama_jax.config_file import read_config
from llama_jax.data.loader import Batch, Loader
from llama_jax.data.packing import target_bytes
from llama_jax.data.prepare import TRAIN, VALIDATION, Mixture, prepare, resolve_tokenizer
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.api import generate
from llama_jax.models import Model, load
from llama_jax.parallel.arrays import check_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.places import expand
from llama_jax.train.evaluate import evaluate
from llama_jax.train.loop import Summary, run
from llama_jax.train.next_token import NextToken
from llama_jax.train.stage import Ask, Sampler, Stage, require_fits
from llama_jax.train.step import jit_eval_step

logger = logging.getLogger(__name__)


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


def pretrain(
    config: TrainConfig, *, sample: Sampler | None = None, ask: Ask | None = None
) -> Summary:
    """Train or resume an experiment; see `train.loop.run`, also for `ask`.

    `sample` returns the sample texts for each evaluation; by default they are the experiment's
    prompts, continued greedily.
    """
    return run(config, partial(stage, sample=sample), ask)


def stage(config: TrainConfig, *, sample: Sampler | None = None) -> Stage:
    """Describes the stage: text, next-token prediction, bits per byte."""
    data: dict[str, Mixture] = {}

    def prepared(tokenizer: Tokenizer) -> dict[str, Mixture]:
        data.update(prepare(config.data, tokenizer, seq_len=config.seq_len))
        passes = data[TRAIN].passes(config.steps * config.batch_size)
        logger.info("%d steps read %s", config.steps, passes)
        return data

    return Stage(
        objective=NextToken(config.model, config.z_loss),
        prepare=prepared,
        observe=text_bytes,
        results=partial(_results, data),
        sample=sample or partial(continue_prompts, config),
        check=partial(check_prompts, config),
        new_tokenizer=lambda: resolve_tokenizer(config.data, config.model.vocab_size),
    )


def continue_prompts(config: TrainConfig, params: dict, tokenizer: Tokenizer) -> list[str]:
    """The experiment's sample prompts, each with its greedy continuation of up to 128 tokens."""
    model = Model(config.model, params, tokenizer)
    prompts = config.sample_prompts
    return [generate(model, p, max_new_tokens=128, temperature=0.0) for p in prompts]


def check_prompts(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raise InputError for a sample prompt that is no text or longer than the context."""
    for prompt in config.sample_prompts:
        require_fits(prompt, len(tokenizer.encode(prompt, bos=True)), config)


def text_bytes(batch: Batch, tokenizer: Tokenizer) -> dict[str, int]:
    """Bytes of the text whose tokens are targets."""
    return {"bytes": target_bytes(batch, tokenizer.byte_lengths, tokenizer.bos_id)}


def evaluation(
    means: Mapping[str, float],
    counts: Mapping[str, float],
    observed: Mapping[str, int],
    *,
    data: Mixture,
) -> Evaluation:
    """The results of `evaluate` for the NextToken objective on some data."""
    # What the pieces spell is not the text where the tokenizer normalises it.
    size = round(observed["bytes"] * data.bytes_per_piece_byte)
    return Evaluation(means["loss"], int(counts["loss"]), max(size, 1))


def evaluate_model(
    path: str,
    *,
    dataset: str | None = None,
    batch_size: int = 8,
    seq_len: int | None = None,
    text_field: str | None = None,
    beat: Callable[[int, int], None] = lambda done, batches: None,
) -> Evaluation:
    """Evaluate a model, or a run folder's, on a data set's validation split.

    dataset, seq_len and text_field default to those of the run. The parameters are split over all
    devices.

    Raises:
      InputError: the model or the data set cannot be used, or has no validation split.
      CheckpointError: no checkpoint verifies.
    """
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        model = load(path)
    loader, data = validation_rows(
        path, model, mesh, dataset=dataset, batch_size=batch_size, seq_len=seq_len,
        text_field=text_field,
    )  # fmt: skip
    assert model.tokenizer is not None
    observe = partial(text_bytes, tokenizer=model.tokenizer)
    with contextlib.closing(loader), jax.set_mesh(mesh):
        eval_step = jit_eval_step(NextToken(model.config))
        found = evaluate(eval_step, model.params, loader, mesh, observe=observe, beat=beat)
        return evaluation(*found, data=data)


def validation_rows(
    path: str,
    model: Model,
    mesh: Mesh,
    *,
    dataset: str | None,
    batch_size: int,
    seq_len: int | None,
    text_field: str | None,
) -> tuple[Loader, Mixture]:
    """The rows of a validation split for a model that was loaded from `path`, with the arguments of
    `evaluate_model`; raises InputError as it does."""
    tokenizer, context = model.tokenizer, model.config.max_seq_len
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer to read text with")
    is_run = (epath.Path(expand(path)) / "checkpoints").is_dir()
    experiment = read_config(path)[1] if is_run else None
    if experiment is not None:
        data = dataclasses.replace(experiment.data, dataset=dataset or experiment.data.dataset)
    else:
        require(dataset, f"{path} is not a run folder: name the text to evaluate on with --data")
        data = DataConfig(dataset=str(dataset))
    if text_field is not None:
        data = dataclasses.replace(data, text_field=text_field)
    seq_len = seq_len or (experiment.seq_len if experiment else context)
    if not 0 < seq_len <= context or batch_size < 1:
        raise InputError(
            f"--seq-len {seq_len} must lie between 1 and the context {context}, and "
            f"--batch-size {batch_size} must be positive"
        )
    batch_size = -(-batch_size // mesh.size) * mesh.size
    check_batch(batch_size, seq_len, 1, mesh)
    held_out = prepare(data, tokenizer, seq_len=seq_len).get("validation")
    if held_out is None:
        raise InputError(
            f"data set {data.dataset} is too small to have a validation split; name other text"
        )
    return Loader(held_out, batch_size=batch_size, seed=0, shuffle=False), held_out


def _results(data, means, counts, observed) -> dict[str, float]:
    found = evaluation(means, counts, observed, data=data[VALIDATION])
    return {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
    }
