"""Tasks put to one model by us and by EleutherAI's lm-evaluation-harness: question by question.

Command   python experiments/compare_harness.py MODEL            (default runs/quickstart)
Hardware  any; needs the extra [eval]
Expected  a minute on two CPU cores; LOG.md has results

Four tasks over the embedded tales: multiple choice (acc, acc_norm), greedy answers (exact match),
the same in the chat template, and perplexity of whole stories. The harness runs our model in this
process through `llama_jax.evals.harness`, with task settings of its own. Exit status 1 if a
question differs.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from llama_jax.data.corpora.tales import story
from llama_jax.data.corpora.tales.facts import FACTS

STORIES = 24
OURS = {
    "choice": """\
title = "Facts, of four choices"
version = 1
kind = "choice"
metrics = ["acc", "acc_norm"]
prompt = "Question: {question}\\nAnswer:"
choices = "choices"
answer = "gold"

[source]
file = "choice.jsonl"
""",
    "generate": """\
title = "The last word of a fact"
version = 1
kind = "generate"
metrics = ["exact_match"]
prompt = "{begin}"
answers = "end"
until = ["."]
max_new_tokens = 24

[source]
file = "generate.jsonl"
""",
    "chat": """\
title = "Questions in the chat template"
version = 1
kind = "generate"
metrics = ["exact_match"]
prompt = "{question}"
answers = "answer"
until = ["\\n"]
max_new_tokens = 40
chat = true

[source]
file = "chat.jsonl"
""",
    "perplexity": """\
title = "Stories"
version = 1
kind = "perplexity"
metrics = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
prompt = "{page}"

[source]
file = "perplexity.jsonl"
""",
}


def theirs(folder: Path) -> list[dict[str, Any]]:
    """The same tasks as the harness has them."""

    def task(name: str, **values: Any) -> dict[str, Any]:
        return {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}, **values,
        }  # fmt: skip

    means = [{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm")]
    asked = {"doc_to_text": "Question: {{question}}\nAnswer:"}

    def written(ends: str, most: int) -> dict[str, Any]:
        stripped = [{"function": "remove_whitespace"}, {"function": "take_first"}]
        return {
            "output_type": "generate_until",
            "generation_kwargs": {"until": [ends], "max_gen_toks": most, "do_sample": False},
            "filter_list": [{"name": "stripped", "filter": stripped}],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
        }

    return [
        task("choice", output_type="multiple_choice", **asked, doc_to_choice="choices",
             doc_to_target="gold", metric_list=means),
        task("generate", doc_to_text="{{begin}}", doc_to_target="{{end}}", **written(".", 24)),
        task("chat", doc_to_text="{{question}}", doc_to_target="{{answer}}", **written("\n", 40)),
        task("perplexity", output_type="loglikelihood_rolling", doc_to_text="",
             doc_to_target="{{page}}",
             metric_list=[{"metric": name} for name in
                          ("word_perplexity", "byte_perplexity", "bits_per_byte")]),
    ]  # fmt: skip


def write(folder: Path) -> None:
    """Rows and task files."""
    facts = [fact for fact in FACTS if len(fact.answers[0].split()) < 12]
    choice, generate, chat = [], [], []
    for n, fact in enumerate(facts):
        wrong = [facts[(n + step) % len(facts)].answers[0] for step in (7, 19, 31)]
        choices = [*wrong[: n % 4], fact.answers[0], *wrong[n % 4 :]]
        choice.append({"question": fact.questions[0], "choices": choices, "gold": n % 4})
        *begin, end = fact.answers[0].rstrip(".!").split()
        generate.append({"begin": " ".join(begin), "end": end})
        chat.append({"question": fact.questions[0], "answer": fact.answers[0]})
    pages = [{"page": story(n, "validation")} for n in range(STORIES)]
    tables = {"choice": choice, "generate": generate, "chat": chat, "perplexity": pages}
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.toml").write_text(OURS[name])


def main(argv: list[str]) -> int:
    import lm_eval  # pyrefly: ignore[missing-import]

    from llama_jax.evals.evaluate import evaluate_tasks
    from llama_jax.evals.harness import harness_model

    path = argv[0] if argv else "runs/quickstart"
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder)
        spec = ",".join(str(folder / f"{name}.toml") for name in OURS)
        (mine,) = evaluate_tasks([path], spec, answers=str(folder / "answers"))
        model, tasks = harness_model(path), theirs(folder)
        found: dict[str, Any] = {"samples": {}, "results": {}}
        for chat in (False, True):
            part = lm_eval.simple_evaluate(
                model=model, tasks=[t for t in tasks if (t["task"] == "chat") == chat],
                apply_chat_template=chat, log_samples=True, bootstrap_iters=0,
            )  # fmt: skip
            for key, values in found.items():
                values.update(part[key])
    for result in mine.results:
        samples = sorted(found["samples"][result.task], key=lambda sample: sample["doc_id"])
        own = found["results"][result.task]
        for name, value in result.values.items():
            (reported,) = [v for k, v in own.items() if k.split(",")[0] == name]
            unequal = [
                sample["doc_id"]
                for sample, score in zip(samples, result.scores.get(name, ()), strict=False)
                if float(sample[name]) != score
            ]
            bad = unequal or abs(reported - value.value) > 1e-5 * max(1.0, abs(value.value))
            differ += bool(bad)
            said = f"differ: {unequal}" if bad else "equal"
            numbers = f"ours {value.value:.6f}  theirs {reported:.6f}"
            print(f"{result.task:<12}{name:<18}{result.asked:>4} questions  {numbers}  {said}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
