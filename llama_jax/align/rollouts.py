"""Rollouts of the training loop: sampled, kept on disk until learned from, logged for people."""

import io
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from llama_jax.align.answering import Answered, generation_weights
from llama_jax.align.rewards import Scores
from llama_jax.align.run_files import exists_on_main, write_on_main
from llama_jax.align.scoring import Scorer
from llama_jax.config_align import PolicyConfig
from llama_jax.data.chat import decode_answer
from llama_jax.data.conversations import EncodedPrompt, prompt_seed
from llama_jax.data.packing import positions_of
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.rollout import Work, sample_answers
from llama_jax.infer.samples import Samples, batch_rows
from llama_jax.infer.sampling_params import SamplingParams

_TRAINED, _HELDOUT = 0, 1
"""Folded into seeds, so that held-out answers are drawn apart from those that are learned from."""


class Rollouts:
    """Samples the answers to the prompts of an iteration, or reads those that are on disk.

    A row is a prompt with an answer; rows of one prompt are consecutive.
    """

    def __init__(
        self,
        config: PolicyConfig,
        workdir: epath.Path,
        tokenizer: Tokenizer,
        *,
        prompt_len: int,
    ):
        self.config, self.workdir, self.tokenizer = config, workdir, tokenizer
        self.prompt_len = prompt_len
        self.params = SamplingParams(
            max_new_tokens=config.max_new_tokens, temperature=config.temperature
        ).for_vocabulary(tokenizer.vocab_size, tokenizer.eos_id)

    def draw(
        self, number: int, prompts: Sequence[EncodedPrompt], policy: Scorer
    ) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
        """Rows of prompts with answers, whether each answer ended, and performance metrics.

        The metrics depend on the machine: their names begin with perf/.
        """
        file = self._file(number)
        if exists_on_main(file):
            return *self._rows(prompts, _read(file)), {}
        begin, work = time.perf_counter(), Work()
        seeds = [(self.config.seed, _TRAINED, number, prompt_seed(p)) for p in prompts]
        samples = self._sample(prompts, policy, seeds, work, self.config.answers)
        seconds = time.perf_counter() - begin
        write_on_main(file, _written(samples))
        return *self._rows(prompts, samples), {
            "perf/generate_tokens_per_second": work.tokens / seconds,
            "perf/generate_compiled_share": work.compiled_seconds / seconds,
            "perf/generate_busy_rows": work.tokens / work.row_steps,
        }

    def draw_heldout(
        self, prompts: Sequence[EncodedPrompt], policy: Scorer
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The same for held-out prompts: one answer each, with the same seed at every
        evaluation."""
        seeds = [(self.config.seed, _HELDOUT, 0, prompt_seed(p)) for p in prompts]
        return self._rows(prompts, self._sample(prompts, policy, seeds, Work(), 1))

    def _sample(
        self, prompts: Sequence[EncodedPrompt], policy: Scorer, seeds: Any, work: Work, n: int
    ) -> Samples:
        return sample_answers(
            generation_weights(policy.params, policy.config),
            [p.tokens for p in prompts],
            self.params,
            config=policy.config,
            n=n,
            seeds=seeds,
            wave_rows=self.config.wave_rows,
            prompt_len=self.prompt_len,
            work=work,
        )

    def _rows(
        self, prompts: Sequence[EncodedPrompt], samples: Samples
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        batch = batch_rows([p.tokens for p in prompts], samples, self.config.seq_len)
        segment_ids = batch.valid.astype(np.int32)
        rows = {
            "tokens": batch.tokens,
            "segment_ids": segment_ids,
            "positions": positions_of(segment_ids),
            "answer": batch.answer,
            "sampler_logp": batch.logp,
        }
        return rows, samples.stopped.reshape(-1)

    def answers(self, rows: dict[str, np.ndarray], stopped: np.ndarray) -> list[Answered]:
        """The answers of rows, as tokens and as text."""
        found = []
        for tokens, answer, ended in zip(rows["tokens"], rows["answer"], stopped, strict=True):
            ids = np.roll(tokens, -1)[answer].tolist()
            found.append(Answered(decode_answer(self.tokenizer, ids), tuple(ids), bool(ended)))
        return found

    def write(
        self,
        folder: str,
        done: int,
        prompts: Sequence[EncodedPrompt],
        answers: Sequence[Answered],
        scores: Scores,
    ) -> None:
        """Writes answers with their scores for people to read: RUN/FOLDER/iteration-NNNNNN.jsonl,
        with a prompt for each of them.

        FOLDER is `completions` for answers that were trained on, `samples` for those to held-out
        prompts.
        """
        lines = []
        for r, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            line = {
                "messages": [*prompt.messages, {"role": "assistant", "content": answer.text}],
                **scores.of(r),
                "finish": "stop" if answer.ended else "length",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        path = self.workdir / folder / f"iteration-{done:06d}.jsonl"
        write_on_main(path, "".join(lines).encode())

    def forget(self, done: int) -> None:
        """Remove the answers of iterations that the newest checkpoint has passed."""
        if jax.process_index() == 0:
            for file in (self.workdir / "rollouts").glob("*.npz"):
                if int(file.stem) < done:
                    file.unlink()

    def _file(self, number: int) -> epath.Path:
        return self.workdir / "rollouts" / f"{number:06d}.npz"


def _written(samples: Samples) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        tokens=samples.tokens,
        logp=samples.logp,
        length=samples.length,
        stopped=samples.stopped,
    )
    return buffer.getvalue()


def _read(file: epath.Path) -> Samples:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
        return Samples(**{name: found[name] for name in found.files})
