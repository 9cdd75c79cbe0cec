"""Evaluates models in any format on tasks, loading each model once."""

from collections.abc import Callable, Sequence

import jax

from llama_jax.config import MeshConfig, require
from llama_jax.evals.kept_answers import KeptAnswers
from llama_jax.evals.model_under_test import ModelUnderTest
from llama_jax.evals.questions import ask
from llama_jax.evals.run_task import Beat, check_allowed, run_task
from llama_jax.evals.table import ModelResults
from llama_jax.evals.task import find
from llama_jax.evals.task_rows import TaskData
from llama_jax.models import load
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.places import cache_folder


def evaluate_tasks(
    models: Sequence[str],
    tasks: str,
    *,
    answers: str,
    data: str = "",
    limit: int | None = None,
    rows: int = 8,
    run_programs: bool = False,
    begin: Callable[[str, str], Beat] = lambda model, task: lambda done, total: None,
) -> list[ModelResults]:
    """The results of each model on each task.

    Args:
      tasks: names of ours and files, see `task.find`.
      answers: the folder in which answers are stored, so that the same call resumes.
      data: the folder of the tasks' data; empty for that of a task's own file.
      limit: the first so many questions of each task, or of each of its groups.
      rows: contexts or answers that are computed together.
      run_programs: whether programs that a model writes may run, see `run_code`.
      begin: returns a function that is called with the progress of a model on a task.

    Raises:
      InputError: a model, a task or its data cannot be used, see `ask`, `find` and `run_task`.
      CheckpointError: no checkpoint of a model verifies.
    """
    require(limit is None or limit > 0, f"--limit {limit} must be positive")
    require(rows > 0, f"--batch-size {rows} must be positive")
    require(len(set(models)) == len(models), "a model is named twice")
    found = find(tasks)
    for task in found:
        check_allowed(task, run_programs)
    asked = [(task, ask(task, TaskData(data), limit)) for task in found]
    folder = cache_folder(answers, "--answers")
    results = []
    mesh = make_mesh(MeshConfig())
    for path in models:
        with jax.set_mesh(mesh):
            model = ModelUnderTest(load(path), rows)
            of_tasks = []
            for task, questions in asked:
                with KeptAnswers(folder, model.digest, task.name) as kept:
                    beat = begin(path, task.name)
                    of_tasks.append(
                        run_task(task, questions, model, kept, run_programs=run_programs, beat=beat)
                    )
            results.append(ModelResults(path, model.digest, of_tasks))
    return results
