"""One round of rejection sampling: choose a temperature, sample, score, pick winners, fine-tune.

RUN/round_K/{temperature.json, samples.jsonl, scores.jsonl, winners.jsonl, best_of_n.json, sft/}; a
round is complete when round.json is there.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from etils import epath

from llama_jax.align.bank import (
    Sample,
    best_of_n,
    read_samples,
    scored,
    to_line,
    winners,
)
from llama_jax.align.progress import counted
from llama_jax.align.prompt_order import prompt_order, sample_of
from llama_jax.align.rewards import Judges, score_answers
from llama_jax.align.run_files import appending, exists_on_main, write_on_main
from llama_jax.align.scoring import rows_of
from llama_jax.align.sft import sft
from llama_jax.config import require
from llama_jax.config_align import RejectionConfig, SftConfig
from llama_jax.data.chat import decode_answer
from llama_jax.data.conversations import EncodedPrompt, prompt_seed
from llama_jax.data.records import Dialogue, to_json
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.rollout import stream_answers
from llama_jax.infer.samples import Answer
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.cache import gather
from llama_jax.models import Model, params_digest
from llama_jax.runtime.hosts import fail_together, is_main
from llama_jax.train.metrics import Clock

_TUNING, _ROUND = 0, 1
"""Folded into seeds, so that answers for the temperature are drawn apart from those of the bank."""
SAMPLES, PARTIAL, WINNERS = "samples.jsonl", "samples.partial.jsonl", "winners.jsonl"
FIGURE_COUNTS = (1, 2, 4, 8, 16, 32, 64, 100)


class Round:
    """One round: its folder and its steps."""

    def __init__(
        self,
        config: RejectionConfig,
        workdir: epath.Path,
        number: int,
        tokenizer: Tokenizer,
        judges: Judges,
        clock: Clock,
    ):
        self.config, self.workdir, self.number = config, workdir, number
        self.tokenizer, self.judges, self.clock = tokenizer, judges, clock
        self.folder = workdir / f"round_{number}"

    def facts(self) -> dict[str, float] | None:
        """The facts that summarise the round; None unless it is complete."""
        file = self.folder / "round.json"
        return json.loads(file.read_text()) if exists_on_main(file) else None

    def draw_and_choose(
        self, model: Model, prompts: Mapping[str, Sequence[EncodedPrompt]]
    ) -> dict[str, float]:
        """Fill the bank, score it, write the winners; returns the facts that summarise the
        round."""
        config, policy = self.config, params_digest(model.params)
        with fail_together():
            for name in (SAMPLES, PARTIAL):
                read_samples(self.folder / name, policy)  # a bank of another model is refused
        w = gather(model.prepared, model.config)
        with self.clock("temperature"):
            temperature = self._temperature(w, model, prompts.get("validation", ()))
        chosen = self._prompts(prompts["train"])
        with self.clock("generate"):
            samples = self._draw(w, model, chosen, temperature, policy)
        del w
        with self.clock("score"):
            found = self._scored(self.folder, samples)
            candidates = list(zip(samples, found.tolist(), strict=True))
            for earlier in range(1, self.number) if config.bank == "all" else ():
                folder = self.workdir / f"round_{earlier}"
                before = read_samples(folder / SAMPLES)
                candidates += zip(before, self._scored(folder, before).tolist(), strict=True)
        best = winners(candidates)
        require(
            best,
            f"round {self.number}: no prompt has different answers that are not empty: raise "
            "the temperature or samples, in another --workdir",
        )
        if not exists_on_main(self.folder / "sft" / "config.json"):
            self._write_winners(best)  # else newer reward models come too late for this round
        figure = best_of_n(found.reshape(len(chosen), config.samples), FIGURE_COUNTS)
        write_on_main(self.folder / "best_of_n.json", to_line(figure).encode())
        lengths = [len(s.tokens) for s in samples]
        return {
            "temperature": temperature,
            "prompts": len(chosen),
            "samples": len(samples),
            "winners": len(best),
            "score": float(found.mean()),
            "winners_score": float(np.mean([score for _, score in best])),
            "tokens": float(np.mean(lengths)),
            "winners_tokens": float(np.mean([len(s.tokens) for s, _ in best])),
            "truncated": float(np.mean([s.finish == "length" for s in samples])),
        }

    def _prompts(self, train: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Those of the round, each once: all, or the next ones of an order of their own."""
        count = self.config.prompts
        if not count:
            return list(train)
        shares = [p.share for p in train]
        order = prompt_order(shares, self.config.seed, (self.number - 1) * count, count)
        return [train[p] for p in dict.fromkeys(order)]

    def _scored(self, folder: epath.Path, samples: Sequence[Sample]) -> np.ndarray:
        return scored(folder, samples, self.judges, self.tokenizer, self.config.seq_len)

    def _temperature(self, w: Any, model: Model, heldout: Sequence[EncodedPrompt]) -> float:
        """The temperature whose best answers to held-out prompts score best."""
        config, file = self.config, self.folder / "temperature.json"
        if not config.temperatures or not heldout:
            return config.temperature
        if exists_on_main(file):
            return json.loads(file.read_text())["chosen"]
        prompts, means = sample_of(heldout, config.seed, config.temperature_prompts), {}
        for t in config.temperatures:
            answers = list(self._answers(w, model, prompts, t, _TUNING, ()))
            texts = [(*prompts[a.prompt].tokens, *a.tokens.tolist()) for a in answers]
            is_safety = np.array([prompts[a.prompt].safety for a in answers])
            scores = score_answers(self.judges, rows_of(texts, config.seq_len), is_safety).combined
            best = np.full(len(prompts), -np.inf)
            np.maximum.at(best, [a.prompt for a in answers], scores)
            means[t] = float(best.mean())
        chosen = max(means, key=means.__getitem__)
        found = {"chosen": chosen, "mean_best_score": {str(t): m for t, m in means.items()}}
        write_on_main(file, to_line(found).encode())
        return chosen

    def _draw(
        self,
        w: Any,
        model: Model,
        prompts: Sequence[EncodedPrompt],
        temperature: float,
        policy: str,
    ) -> list[Sample]:
        """All answers of the round; those that an interrupted call drew are kept."""
        whole, partial = self.folder / SAMPLES, self.folder / PARTIAL
        if exists_on_main(whole):
            return read_samples(whole)
        made = read_samples(partial)
        # A line cut by a kill goes: whatever follows it would be lost with it.
        write_on_main(partial, "".join(map(to_line, made)).encode())
        place = {p.id: number for number, p in enumerate(prompts)}
        have = {(place[s.prompt_id], s.sample) for s in made}
        with appending(partial) as append:
            answers = self._answers(w, model, prompts, temperature, _ROUND, have)
            left = len(prompts) * self.config.samples - len(have)
            for answer in counted(answers, left, f"round {self.number}, answers"):
                prompt = prompts[answer.prompt]
                sample = Sample(
                    prompt_id=prompt.id,
                    messages=tuple(prompt.messages),
                    safety=prompt.safety,
                    tokens=tuple(answer.tokens.tolist()),
                    text=decode_answer(self.tokenizer, answer.tokens.tolist()),
                    finish=answer.finish,
                    round=self.number,
                    sample=answer.sample,
                    policy=policy,
                    temperature=temperature,
                )
                append(to_line(sample))
                made.append(sample)
        made.sort(key=lambda s: (place[s.prompt_id], s.sample))
        write_on_main(whole, "".join(map(to_line, made)).encode())
        if is_main():
            partial.unlink()
        return made

    def _answers(
        self,
        w: Any,
        model: Model,
        prompts: Sequence[EncodedPrompt],
        temperature: float,
        purpose: int,
        have: Collection[tuple[int, int]],
    ) -> Iterator[Answer]:
        """The samples of the prompts that are not among those that we have."""
        config = self.config
        wanted = [
            (p, j) for p in range(len(prompts)) for j in range(config.samples) if (p, j) not in have
        ]
        params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=temperature)
        return stream_answers(
            w,
            [p.tokens for p in prompts],
            params.for_vocabulary(self.tokenizer.vocab_size, self.tokenizer.eos_id),
            config=model.config,
            wanted=wanted,
            seeds=[(config.seed, purpose, self.number, prompt_seed(p)) for p in prompts],
            wave_rows=config.wave_rows,
            most=len(prompts) * config.samples,  # also where a resumed round lacks fewer
            prompt_len=config.seq_len - config.max_new_tokens,
        )

    def _write_winners(self, best: Sequence[tuple[Sample, float]]) -> None:
        lines = []
        for sample, _ in best:
            answer = {"role": "assistant", "content": sample.text}
            dialogue = Dialogue(messages=(*sample.messages, answer), source=f"round {sample.round}")
            lines.append(to_json(dialogue) + "\n")
        write_on_main(self.folder / WINNERS, "".join(lines).encode())

    def fine_tune(self, current: str) -> bool:
        """Fine-tune the model that sampled the answers on the winners; returns whether all steps
        were made."""
        own: dict[str, Any] = {f.name: getattr(self.config, f.name) for f in fields(SftConfig)}
        data = replace(self.config.data, dataset=str(self.folder / WINNERS), format=None)
        changes: dict[str, Any] = {
            "workdir": str(self.folder / "sft"),
            "init_from": current,
            "data": data,
            "seed": self.config.seed + self.number,
            "eval_every": 0,
        }
        with self.clock("fine-tune"):
            return sft(SftConfig(**own | changes)).finished
