"""Benchmark tasks during training: scores the current model at each evaluation.

Nothing is kept between evaluations, whose models differ; the questions are read once, before the
first step.
"""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from llama_jax.config import ModelConfig, TrainConfig, require
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.evals.kept_answers import KeptAnswers
from llama_jax.evals.model_under_test import ModelUnderTest
from llama_jax.evals.questions import ask
from llama_jax.evals.run_task import run_task
from llama_jax.evals.task import find
from llama_jax.evals.task_rows import TaskData
from llama_jax.models import Model

ROWS = 8
"""Contexts or answers that are computed together."""


def asker(config: TrainConfig) -> Callable[..., Mapping[str, float]]:
    """The function that `train.loop.run` calls at each evaluation: it runs the experiment's
    `eval_tasks`.

    Results are named TASK/METRIC.

    Raises InputError: a task is unknown, is one of code, or its data cannot be read.
    """
    tasks, limit = find(",".join(config.eval_tasks)), config.eval_questions or None
    for task in tasks:
        require(
            task.kind != "code",
            f"eval_tasks: {task.name} runs programs that a model writes, which training never does;"
            f" ask it afterwards: llama-jax eval RUN --tasks {task.name} --run-code",
        )
    asked = [(task, ask(task, TaskData(config.eval_data), limit)) for task in tasks]

    def put(
        model: ModelConfig, params: dict[str, Any], tokenizer: Tokenizer, beat: Callable[[], None]
    ) -> dict[str, float]:
        under_test = ModelUnderTest(Model(model, params, tokenizer), ROWS)
        found = {}
        for task, questions in asked:
            with (
                tempfile.TemporaryDirectory() as folder,
                KeptAnswers(folder, "training", task.name) as kept,
            ):
                result = run_task(task, questions, under_test, kept, beat=lambda *_: beat())
            for metric, value in result.values.items():
                found[f"{task.name}/{metric}"] = value.value
        return found

    return put
