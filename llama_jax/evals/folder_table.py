"""Lists the contents of a run folder, with links."""

import os
from html import escape

from etils import epath

from llama_jax.evals.page import table

FILES = {
    "checkpoints": "what is trained, and its optimizer state, with a digest of every array",
    "config.json": "every setting of the run",
    "tokenizer.model": "the sentencepiece tokenizer",
    "samples": "what the model wrote at each evaluation",
    "completions": "every answer that was learned from, with its scores, by iteration",
    "metrics.jsonl": "every number that was logged, one line of JSON for each step that logs",
    "tensorboard": "the same numbers for TensorBoard",
    "loss.svg": "the loss curve",
}
"""Contents of run folders."""
ROUND = "a round of rejection sampling: answers, scores, winners, and the fine-tuning on them"


def folder_table(run: epath.Path, rounds: int = 0) -> str:
    """The folder's path, those of FILES that it holds, and its rounds."""
    rows = [(name, what) for name, what in FILES.items() if (run / name).exists()]
    rows += [(f"round_{n + 1}", ROUND) for n in range(rounds)]
    linked = table(("in the run folder", "what it is"), rows)
    for name, _ in rows:
        linked = linked.replace(f"<td>{name}</td>", f"<td><a href='{name}'>{name}</a></td>")
    return f"<p><code>{escape(os.fspath(run))}</code></p>{linked}"
