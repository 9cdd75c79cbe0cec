"""The bank of rejection sampling: stores every sampled answer, its scores and the winners.

RUN/round_K/{samples.jsonl, scores.jsonl, winners.jsonl}. An answer is drawn once; it is scored
again when the reward models change, since scores of different models cannot be compared.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from llama_jax.align.answering import is_text
from llama_jax.align.losses import max_of_k
from llama_jax.align.rewards import Judges, score_answers
from llama_jax.align.run_files import exists_on_main, write_on_main
from llama_jax.align.scoring import rows_of
from llama_jax.config import InputError, require
from llama_jax.data.chat import encode_prompt
from llama_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One answer to one prompt."""

    prompt_id: str
    messages: tuple[Mapping[str, Any], ...]
    """The conversation that it answers."""
    safety: bool
    """Whether the safety model judges the answers to this prompt."""
    tokens: tuple[int, ...]
    """As they were sampled, EOS included."""
    text: str
    finish: str
    """`stop` or `length`."""
    round: int
    sample: int
    """Its number among the answers to its prompt in this round."""
    policy: str
    """Digest of the weights that drew it."""
    temperature: float


def read_samples(file: epath.Path, policy: str | None = None) -> list[Sample]:
    """The whole lines of a file of samples; a last line cut by a kill is left out.

    Raises InputError, with file and row, for a line that is no sample, and for one that another
    model than `policy` drew, if that is given.
    """
    if not file.exists():
        return []
    found = []
    for row, line in enumerate(file.read_text().split("\n")[:-1], 1):
        try:
            values = json.loads(line)
            values |= {name: tuple(values[name]) for name in ("messages", "tokens")}
            sample = Sample(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file}, row {row} is not a sample ({error!r:.80})") from error
        require(
            policy in (None, sample.policy),
            f"{file}, row {row} was drawn by another model (digest {sample.policy[:12]}) than the "
            f"one that this round starts from ({policy or '':.12}): name that model again, or use "
            "another --workdir",
        )
        found.append(sample)
    return found


def to_line(record: Any) -> str:
    """A dataclass, or a mapping, as one line of JSON."""
    values = record if isinstance(record, Mapping) else asdict(record)
    return json.dumps(values, ensure_ascii=False) + "\n"


def scored(
    folder: epath.Path,
    samples: Sequence[Sample],
    judges: Judges,
    tokenizer: Tokenizer,
    seq_len: int,
) -> np.ndarray:
    """Combined scores of a round's samples, float32: read from its scores.jsonl, or computed."""
    file, digest = folder / "scores.jsonl", judges.digest()
    if exists_on_main(file):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if len(lines) == len(samples) and all(m["judges"] == digest for m in lines):
            return np.array([m["score"] for m in lines], np.float32)
    asked = {s.prompt_id: s.messages for s in samples}
    prompts = {name: encode_prompt(tokenizer, messages) for name, messages in asked.items()}
    rows = rows_of([(*prompts[s.prompt_id], *s.tokens) for s in samples], seq_len)
    found = score_answers(judges, rows, np.array([s.safety for s in samples]))
    assert found.helpfulness is not None, "reward models say it"
    lines = [
        to_line({
            "prompt_id": s.prompt_id,
            "sample": s.sample,
            "judges": digest,
            "score": float(found.combined[r]),
            "helpfulness": float(found.helpfulness[r]),
            "safety": None if found.safety is None else float(found.safety[r]),
        })
        for r, s in enumerate(samples)
    ]  # fmt: skip
    write_on_main(file, "".join(lines).encode())
    return found.combined


def winners(samples: Iterable[tuple[Sample, float]]) -> list[tuple[Sample, float]]:
    """The best answer to each prompt, with its score, in the order of the prompts.

    A truncated answer wins only if all answers to the prompt are truncated. An answer that is empty
    or contains tags of the chat template never wins. Ties go to the shorter answer, then to the
    earlier one. A prompt whose answers are all alike carries no signal and has no winner.
    """
    by_prompt: defaultdict[str, list[tuple[Sample, float]]] = defaultdict(list)
    for sample, score in samples:
        if is_text(sample.text):
            by_prompt[sample.prompt_id].append((sample, score))
    best = []
    for candidates in by_prompt.values():
        if len(candidates) > 1 and len({s.text for s, _ in candidates}) == 1:
            continue
        ended = [c for c in candidates if c[0].finish == "stop"] or candidates
        best.append(min(ended, key=lambda c: (-c[1], len(c[0].tokens), c[0].round, c[0].sample)))
    return best


def best_of_n(scores: np.ndarray, counts: Sequence[int]) -> dict[str, list[float]]:
    """Figure 7 of the paper from one bank: for each n, the mean over prompts of the best of n
    answers with its standard error, and the median.

    scores: [prompts, N].
    """
    P, N = scores.shape
    counts = [n for n in counts if n <= N]
    best = [np.asarray(max_of_k(jnp.asarray(scores, jnp.float32), n)) for n in counts]
    return {
        "n": [float(n) for n in counts],
        "max": [float(b.mean()) for b in best],
        "max_error": [float(b.std() / np.sqrt(P)) for b in best],
        "median": [float(np.median(scores, axis=1).mean())] * len(counts),
    }
