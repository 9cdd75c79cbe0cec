"""Reference log-probabilities for direct preference optimisation, computed once and cached.

Only two numbers per pair are kept, not the model. They lie in the data cache under a digest of
everything that they depend on. A run does not resume with a different reference.
"""

import io
import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from llama_jax.align.pairs import answer_rows, by_pair
from llama_jax.align.progress import counted
from llama_jax.align.scoring import Scorer, answer_logprobs_of
from llama_jax.align.segments import apart
from llama_jax.config import QuantizedModel, plain
from llama_jax.config_align import DpoConfig
from llama_jax.data.loader import Loader, read_columns
from llama_jax.data.prepare import Mixture, Prepared
from llama_jax.data.sources import digest
from llama_jax.model.quantize import quantized
from llama_jax.model.weights import abstract_params
from llama_jax.models import open_model, weights_identity
from llama_jax.runtime.files import as_path, write_atomic
from llama_jax.runtime.hosts import exchange
from llama_jax.runtime.places import cache_folder

logger = logging.getLogger(__name__)
COLUMN = "reference"
"""Name of the array float32 [B,K,2] of a batch."""
VERSION = 2
"""Increase it whenever the computation of the numbers changes."""
NO_PART = {"remat", "attention"}
"""Model settings that change the numbers only by rounding."""


def reference_identity(config: DpoConfig) -> str:
    """Digest of everything that determines the reference's log-probabilities: weights, function,
    dtypes."""
    function: dict[str, Any] = asdict(plain(config.model))
    function = {k: v for k, v in function.items() if k not in NO_PART}
    if config.model.quant is not None:
        function["quant"] = asdict(config.model.quant)
    return digest(COLUMN, weights_identity(open_model(config.init_from)), function, VERSION)


def with_reference(
    config: DpoConfig, data: Mapping[str, Mixture], identity: str
) -> dict[str, Mixture]:
    """The same pairs with the reference's log-probabilities of both answers.

    Those that the cache lacks are computed with the parameters of `init_from`, which are read once
    and then released. With a mesh in context they are split over it.
    """
    parts = [part for mixture in data.values() for part in mixture.parts]
    folder = as_path(cache_folder(config.data.cache_dir, "data.cache_dir"))
    paths = {p: str(folder / f"{COLUMN}-{digest(p.fingerprint, identity)[:16]}.npz") for p in parts}
    # Caches may be each host's own: all compute together, or none does.
    K = config.pairs_per_row
    missing = [p for p in parts if not all(map(json.loads, exchange(_is_complete(paths[p], p, K))))]
    if missing:
        scorer = _reference(config)
        for part in missing:
            logger.info("log-probabilities of %s (%s) by the reference", part.name, part.split)
            found = reference_logprobs(scorer, part, K)
            write_atomic(paths[part], _written(found))
    return {
        split: replace(mixture, parts=tuple(replace(p, columns=paths[p]) for p in mixture.parts))
        for split, mixture in data.items()
    }


def reference_logprobs(
    scorer: Scorer, part: Prepared, per_row: int
) -> Float[np.ndarray, "R {per_row} 2"]:
    """Log-probabilities of the chosen and the rejected answers of every record of a part, float32;
    0 in the places of a record that hold no pair."""
    found = []
    loader = Loader(Mixture((part,), (1.0,)), batch_size=scorer.block // 2, seed=0, shuffle=False)
    with closing(loader), loader.iterate() as batches:
        for batch in counted(batches, len(loader), "reference"):
            logp = answer_logprobs_of(scorer, apart(answer_rows(batch), per_row))
            found.append(by_pair(logp.reshape(-1, per_row)).reshape(-1, per_row, 2))
    return np.concatenate(found)[: part.num_records]


def _reference(config: DpoConfig) -> Scorer:
    """The model to stay close to; it reads as many rows at once as a step does."""
    params, model = open_model(config.init_from).dense().read(), plain(config.model)
    if config.model.quant is not None:  # the base that the policy stands on, bit by bit
        model = QuantizedModel.of(model, config.model.quant)
        params = quantized(params, model)
    params = jax.tree.map(lambda a, b: a.astype(b.dtype), params, abstract_params(model))
    return Scorer(model, params, 2 * (config.batch_size // config.accumulate))


def _is_complete(path: str, part: Prepared, per_row: int) -> str:
    """Whether a file holds the numbers of these records, undamaged, as JSON."""
    try:
        shape = read_columns(path)[COLUMN].shape
        return json.dumps(shape == (part.num_records, per_row, 2))
    except FileNotFoundError:
        return json.dumps(False)
    except Exception as error:  # whatever zip and NumPy make of damaged bytes
        logger.warning("%s is damaged (%s): it is computed anew", path, error)
        return json.dumps(False)


def _written(found: Float[np.ndarray, "R K 2"]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, reference=found)
    return buffer.getvalue()
