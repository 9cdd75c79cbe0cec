"""Averages of an objective over a validation set."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh

from llama_jax.data.loader import Batch, Loader
from llama_jax.parallel.arrays import host_rows, shard_batch
from llama_jax.runtime.hosts import exchange

Observe = Callable[[Batch], Mapping[str, int]]
"""Counts of the rows of a batch, taken on the host, such as bytes of text."""


def evaluate(
    eval_step: Callable,
    params: dict,
    loader: Loader,
    mesh: Mesh,
    *,
    observe: Observe = lambda batch: {},
    max_batches: int = 0,
    beat: Callable[[int, int], None] = lambda done, batches: None,
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Run `eval_step` (see step.jit_eval_step) over a loader that does not shuffle.

    max_batches 0 takes all; fewer are spread evenly, since the parts of a mixture follow each
    other. `beat` is called after each batch with the batches done and in all.

    Returns:
      The averages by name, what each was averaged over, and the sums of what `observe` counted.
    """
    batches = min(len(loader), max_batches) if max_batches else len(loader)
    totals: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    observed: defaultdict[str, int] = defaultdict(int)
    with loader.iterate(every=len(loader) // batches) as stream:
        for done in range(batches):
            batch = next(stream)
            for name, count in observe(batch).items():
                observed[name] += count
            rows = shard_batch(batch, mesh, loader.batch_size)
            for name, mean in jax.device_get(eval_step(params, rows)).items():
                totals[name] += float(mean.total)
                counts[name] += float(mean.count)
            beat(done + 1, batches)
    means = {name: total / max(counts[name], 1) for name, total in totals.items()}
    rows_here = len(host_rows(mesh, loader.batch_size))
    return means, dict(counts), _over_hosts(dict(observed), rows_here, loader.batch_size)


def _over_hosts(mine: dict[str, int], rows: int, batch_size: int) -> dict[str, int]:
    """The counts of all hosts; those that share rows have counted them more than once."""
    if jax.process_count() == 1:
        return mine
    said = [json.loads(text) for text in exchange(json.dumps([mine, rows]))]
    read = sum(rows for _, rows in said)
    return {name: sum(m[name] for m, _ in said) * batch_size // read for name in mine}
