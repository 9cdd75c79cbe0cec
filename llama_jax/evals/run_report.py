"""HTML report of a run: RUN/report.html, one file that opens from disk.

Of pretraining it shows the loss, samples from three moments, the attention of one head, next-token
probabilities, the run's files and the commands to try next. `stage_report` has the other stages.
"""

from collections.abc import Sequence
from html import escape

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from llama_jax.config import InputError, TrainConfig
from llama_jax.config_file import read_config
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.evals.attention_map import attention_weights, farthest_looking
from llama_jax.evals.charts import heat, lines
from llama_jax.evals.figures import curve
from llama_jax.evals.folder_table import folder_table
from llama_jax.evals.page import commands, document, shares
from llama_jax.evals.stage_report import stage_parts
from llama_jax.infer.api import generate
from llama_jax.model.llama import apply, init_params
from llama_jax.model.weights import parameter_count
from llama_jax.models import Model, load
from llama_jax.runtime.console import own_command
from llama_jax.runtime.files import write_atomic
from llama_jax.runtime.places import expand
from llama_jax.train.metrics import METRICS_FILE, read_metrics
from llama_jax.train.samples import read_samples

REPORT = "report.html"
WORDS = 24
"""Number of tokens of the text whose attention is drawn."""
CANDIDATES = 6
"""Number of next tokens that are shown."""
SAMPLED = 48
"""Number of tokens that the untrained model writes."""


def write_report(path: str) -> epath.Path:
    """Write RUN/report.html; returns where it is.

    Raises:
      InputError: `path` is no run folder, or holds files that no run writes.
      CheckpointError: no checkpoint of a pretraining run verifies.
    """
    run = epath.Path(expand(path))
    experiment = read_config(run)[1]
    if experiment is None:
        raise InputError(f"{path} is a model folder: a report needs a run folder, with its metrics")
    metrics = read_metrics(run / METRICS_FILE)
    if experiment.stage == TrainConfig.stage:
        parts = _pretraining(path, run, experiment, metrics)
    else:
        parts = [part for part in stage_parts(path, run, experiment, metrics) if part]
    target = run / REPORT
    write_atomic(target, document(run.name, parts).encode())
    return target


def _pretraining(
    path: str, run: epath.Path, experiment: TrainConfig, metrics: Sequence[dict]
) -> list[str]:
    model = load(run)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer to read text with")
    moments = _moments(run, experiment, model)
    text = list(moments.values())[-1][0]
    prompt = experiment.sample_prompts[0] if experiment.sample_prompts else ""
    ids = tokenizer.encode(text, bos=True)[: model.config.max_seq_len]
    return [
        _facts(experiment, metrics),
        "<h2>How it learned</h2>",
        _loss(metrics, model.config.vocab_size),
        "<h2>What it wrote, and when</h2>",
        _samples(experiment.sample_prompts or ("",), moments),
        "<h2>What a head looks at</h2>",
        _attention(model, tokenizer, ids[:WORDS]),
        "<h2>What it expects next</h2>",
        _expected(model, tokenizer, ids, len(tokenizer.encode(prompt, bos=True))),
        "<h2>Where everything is</h2>",
        folder_table(run),
        "<h2>What to type next</h2>",
        commands(_next(path, prompt)),
    ]


def _facts(experiment: TrainConfig, metrics: Sequence[dict]) -> str:
    c, tokens = experiment.model, experiment.batch_size * experiment.seq_len
    step = max((m["step"] for m in metrics), default=0)
    said = (
        f"A Llama 2 with {parameter_count(c):,} parameters in {c.num_layers} layers of width "
        f"{c.d_model}, trained on {escape(experiment.data.dataset)} for {step:,} steps of "
        f"{tokens:,} tokens: {step * tokens:,} tokens in all. "
    )
    found = next((m for m in reversed(metrics) if "eval/loss" in m), None)
    if found is not None:
        said += f"On text that it was not trained on its loss is {found['eval/loss']:.3f} nats a "
        said += f"token, a perplexity of {found['eval/perplexity']:.2f}."
    return f"<p>{said}</p>"


def _loss(metrics: Sequence[dict], vocab_size: int) -> str:
    series = {
        name: curve(metrics, key)
        for name, key in (("training", "train/loss"), ("validation", "eval/loss"))
    }
    chart = lines({name: s for name, s in series.items() if s}, "step", "nats a token")
    return (
        f"<figure class=alone>{chart}<figcaption>Cross-entropy. A model that knows nothing gives "
        f"each of {vocab_size:,} tokens the same chance: {np.log(vocab_size):.2f} nats."
        "</figcaption></figure>"
    )


def _moments(run: epath.Path, experiment: TrainConfig, model: Model) -> dict[str, list[str]]:
    """Up to three moments of training and the texts of each prompt then: before the first step,
    half-way, now."""
    kept = read_samples(run)
    prompts = experiment.sample_prompts or ("",)
    if kept:
        last, texts = max(kept.items())
    else:
        last, texts = experiment.steps, [_continued(model, prompt) for prompt in prompts]
    moments = {}
    if experiment.init_from is None:
        fresh = Model(model.config, init_params(jax.random.key(experiment.seed), model.config),
                      model.tokenizer, model.usage)  # fmt: skip
        moments["before the first step"] = [_continued(fresh, prompt) for prompt in prompts]
    if between := [step for step in kept if step < last]:
        step = min(between, key=lambda step: abs(2 * step - last))
        moments[f"after {step:,} steps"] = kept[step]
    return moments | {f"after {last:,} steps": texts}


def _continued(model: Model, prompt: str) -> str:
    return generate(model, prompt, max_new_tokens=SAMPLED, temperature=0.0)


def _samples(prompts: Sequence[str], moments: dict[str, list[str]]) -> str:
    cards = []
    for moment, texts in moments.items():
        said = []
        for prompt, text in zip(prompts, texts, strict=False):
            rest = text.removeprefix(prompt)
            said.append(
                f"<p class=text><span class=given>{escape(prompt)}</span>{escape(rest)}</p>"
            )
        cards.append(f"<div class=card><h3>{moment}</h3>{''.join(said)}</div>")
    return (
        "<p>The pale words were given; the rest is the model's, the most probable token each time, "
        "until the text ends or a limit is reached.</p>"
        f"<div class=cards>{''.join(cards)}</div>"
    )


def _attention(model: Model, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    weights = attention_weights(model.params, jnp.asarray(ids, jnp.int32), config=model.config)
    weights = np.asarray(weights)
    layer, head = farthest_looking(weights)
    names = [_shown(tokenizer, i) for i in ids]
    picture = heat(weights[layer, head], names)
    return (
        f"<figure class=alone>{picture}<figcaption>Head {head + 1} of layer {layer + 1}. Each row "
        "is a token, and shows from which earlier tokens it takes information: the stronger the "
        "colour, the more. Of all heads this one looks back most, past its own "
        "token, the one before it and the beginning.</figcaption></figure>"
    )


def _expected(model: Model, tokenizer: Tokenizer, ids: Sequence[int], given: int) -> str:
    logits = apply(model.params, jnp.asarray([ids], jnp.int32), config=model.config)[0]
    log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    p = np.exp(log_p)
    own = range(given, len(ids) - 1)  # places of the model's own text with a token after them
    places = {"after the prompt": given - 1}
    if own:
        uncertainty = -(p * log_p).sum(-1)
        places["where it is least certain"] = max(own, key=uncertainty.__getitem__)
    if back := _comes_back(ids, log_p, own):
        places["where a word comes back"] = back
    cards = []
    for name, place in places.items():
        read = tokenizer.decode(list(ids[: place + 1]))
        read = read if len(read) < 60 else "… " + read[-60:].partition(" ")[2]
        best = np.argsort(-p[place], kind="stable")[:CANDIDATES]
        rows = [(_shown(tokenizer, int(i)), float(p[place, i])) for i in best]
        cards.append(f"<div class=card><h3>{name}</h3><p class=text>{escape(read)} ▁</p>"
                     f"{shares(rows)}</div>")  # fmt: skip
    return (
        "<p>Probabilities of the next token, given all before it. A space before a word is part of "
        f"its token (␣).</p><div class=cards>{''.join(cards)}</div>"
    )


def _comes_back(ids: Sequence[int], log_p: Float[np.ndarray, "T V"], own: range) -> int | None:
    """The place in the model's own text before a token that was a surprise at first, and is the
    least of one now that it stands in the text; None where no token comes back."""
    gains = {}
    for t in own:
        token = ids[t + 1]
        first = ids.index(token)
        if 0 < first < t:
            gains[t] = log_p[t, token] - log_p[first - 1, token]
    return max(gains, key=gains.__getitem__, default=None)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.piece(token).replace("▁", "␣")


def _next(path: str, prompt: str) -> list[tuple[str, str]]:
    prompt, program = prompt.replace('"', '\\"'), own_command()
    return [
        (f'{program} generate {path} --prompt "{prompt}" --temperature 0.7', "write another one"),
        (f"{program} serve {path}", "a page to talk to it, and OpenAI's API"),
        (f"{program} eval {path}", "loss, perplexity and bits per byte on held-out text"),
        (f"{program} convert {path} exported --to hf", "for Hugging Face transformers; or gguf"),
        (f"{program} new mine", "an experiment of your own"),
        (f"{program} experiments", "what else there is to train"),
    ]
