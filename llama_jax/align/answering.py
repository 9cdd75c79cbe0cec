"""Samples a model's answers to many conversations at once, as text."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from llama_jax.align.progress import counted
from llama_jax.config import InputError, ModelConfig, require
from llama_jax.config_align import SftConfig
from llama_jax.data.chat import check_text, decode_answer, encode_prompt
from llama_jax.data.records import Dialogue, Message, to_json
from llama_jax.data.sources import digest
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.rollout import stream_answers
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import gather, prepare
from llama_jax.models import Model, load, open_model, weights_identity
from llama_jax.runtime.files import as_path, write_atomic
from llama_jax.runtime.hosts import exchange


class Answered(NamedTuple):
    """An answer as text."""

    text: str
    tokens: tuple[int, ...]
    """As they were sampled, EOS included."""
    ended: bool
    """Whether it ended by itself; a truncated answer is no example to learn from."""


@dataclass(frozen=True)
class Answerer:
    """A model that answers, prepared once."""

    w: dict[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer
    max_new_tokens: int
    temperature: float
    wave_rows: int
    prompt_len: int
    """Longest conversation, in tokens; all calls share their compiled programs."""
    most: int | None = None
    """Conversations of a call at most; None for those of each call."""
    told: str = ""
    """Label of the progress bar of a call; if empty, no bar is shown."""

    @staticmethod
    def of(model: Model, **settings: Any) -> "Answerer":
        """From a loaded model; `settings` are the other fields."""
        require(model.tokenizer is not None, "the model has no tokenizer to answer with")
        assert model.tokenizer is not None
        w = gather(model.prepared, model.config)
        return Answerer(w, model.config, model.tokenizer, **settings)

    @staticmethod
    def load(path: str, **settings: Any) -> "Answerer":
        """From the path of a model in any format, or of a run folder; `settings` are the other
        fields."""
        return Answerer.of(load(path), **settings)

    def reads(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation is short enough."""
        return len(encode_prompt(self.tokenizer, messages)) <= self.prompt_len

    def answer(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[Sequence[int]]
    ) -> list[Answered]:
        """One answer to each conversation; each conversation ends with a user message.

        Raises InputError for a conversation that is too long or cannot be encoded.
        """
        params = SamplingParams(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature
        ).for_vocabulary(self.tokenizer.vocab_size, self.tokenizer.eos_id)
        drawn = stream_answers(
            self.w,
            [encode_prompt(self.tokenizer, messages) for messages in conversations],
            params,
            config=self.config,
            wanted=[(p, 0) for p in range(len(conversations))],
            seeds=seeds,
            wave_rows=self.wave_rows,
            prompt_len=self.prompt_len,
            most=self.most,
        )
        found = {}
        for answer in counted(drawn, len(conversations), self.told) if self.told else drawn:
            tokens, ended = tuple(answer.tokens.tolist()), answer.finish == "stop"
            found[answer.prompt] = Answered(decode_answer(self.tokenizer, tokens), tokens, ended)
        return [found[p] for p in range(len(conversations))]


def is_text(answer: str) -> bool:
    """Whether an answer can stand in a conversation: not empty, and without the template's tags."""
    try:
        check_text(answer, "answer", answer=True)
    except InputError:
        return False
    return bool(answer)


def generation_weights(params: Any, config: ModelConfig) -> dict[str, Any]:
    """The parameters in the form that generation needs, gathered once for all decoding steps."""
    return gather(prepare(params, config), config)


def kept_dialogues(
    config: SftConfig,
    tokenizer: Tokenizer,
    models: Sequence[str],
    make: Callable[[], Sequence[Dialogue]],
) -> str:
    """Path of the file of dialogues that `make` builds from the answers of `models`; built only
    once.

    It lies in data.cache_dir, under a digest of the settings and weights that determine its
    contents.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in _ELSEWHERE}
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in OF_A_HOST}
    weights = [weights_identity(open_model(path)) for path in models]
    text = json.dumps([settings, weights], sort_keys=True)
    name = digest(config.stage, text, tokenizer.fingerprint)[:16]
    path = as_path(config.data.cache_dir) / f"{config.stage}-{name}.jsonl"
    # The cache may be each host's own, but all draw answers together, or none does.
    if not all(text == "True" for text in exchange(str(path.exists()))):
        lines = "".join(to_json(dialogue) + "\n" for dialogue in make())
        write_atomic(path, lines.encode())
    return str(path)


_ELSEWHERE = {
    "workdir", "steps", "batch_size", "accumulate", "optimizer", "checkpoint", "mesh", "log_every",
    "eval_every", "eval_batches", "eval_tasks", "eval_questions", "eval_data", "sample_prompts",
    "profile_steps", "max_skipped", "watchdog_seconds", "compilation_cache", "init_from", "safety",
    "replay", "answers_from",
}  # fmt: skip
"""Settings that decide nothing about the answers, or are known by their weights."""
OF_A_HOST = {"cache_dir", "workers"}
"""Data settings that may differ between hosts."""
