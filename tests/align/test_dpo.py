"""Direct preference optimisation: its objective by hand, and a reference that is never stale."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.align import reference as reference_module
from llama_jax.align.dpo import Preferences, dpo
from llama_jax.align.reference import reference_identity, with_reference
from llama_jax.config import InputError, LoraConfig
from llama_jax.data.conversations import prepare_preferences
from llama_jax.data.loader import Loader, read_columns
from llama_jax.data.packing import positions_of, target_mask
from llama_jax.data.prepare import Mixture
from llama_jax.model.llama import apply, init_params
from llama_jax.model.presets import TINY
from llama_jax.train.step import forward_of
from tests.align.pair_rows import in_fewer_rows
from tests.devices import devices
from tests.train.tiny import digests, facts

B, T = 3, 12
BETA = 0.3


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with devices(1):
        yield


@pytest.fixture(scope="module")
def batch():
    """Three pairs, the last of which only fills the batch."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, TINY.vocab_size, (B, 2, T), dtype=np.int32)
    lengths = np.array([[12, 9], [7, 11], [0, 0]])
    places = np.arange(T)[None, None]
    segment_ids = (places < lengths[..., None]).astype(np.int32)
    return {
        "tokens": tokens,
        "segment_ids": segment_ids,
        "positions": positions_of(segment_ids),
        "loss_mask": ((places >= 5) & (segment_ids > 0)).astype(np.uint8),
        "rating": np.array([[3], [0], [0]], np.int32),
        "margin": np.full((B, 1), np.nan, np.float32),
        "safe": np.full((B, 1, 2), -1, np.int8),
        "reference": rng.uniform(-40, -20, (B, 2)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def params():
    return init_params(jax.random.key(0), TINY)


def answers_by_hand(params, batch):
    """Summed log-probabilities of the answers and their lengths, [B,2] float64."""
    logp, lengths = np.zeros((B, 2)), np.zeros((B, 2))
    for side in range(2):
        rows = {k: batch[k][:, side] for k in ("tokens", "positions", "segment_ids")}
        logits = np.asarray(apply(params, jnp.asarray(rows["tokens"]), config=TINY), np.float64)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for b in range(B):
            for t in range(5, int(rows["segment_ids"][b].sum())):
                logp[b, side] += logits[b, t - 1, rows["tokens"][b, t]]
                lengths[b, side] += 1
    return logp, lengths


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
@pytest.mark.parametrize("by_length", [False, True])
def test_loss_and_metrics_agree_with_their_formulas(params, batch, kind, by_length):
    logp, lengths = answers_by_hand(params, batch)
    smoothing = 0.1 if kind == "sigmoid" else 0.0
    against = batch["reference"].astype(np.float64)
    if by_length:
        logp, against = logp / np.maximum(lengths, 1), against / np.maximum(lengths, 1)
    ratio = (logp - against)[:2]  # the third row is no pair
    difference = ratio[:, 0] - ratio[:, 1]
    sigmoid = 1 / (1 + np.exp(-BETA * difference))
    losses = -(1 - smoothing) * np.log(sigmoid) - smoothing * np.log(1 - sigmoid)
    if kind == "ipo":
        losses = (difference - 1 / (2 * BETA)) ** 2
    objective = Preferences(TINY, BETA, kind, smoothing, by_length)
    rows = {name: jnp.asarray(a) for name, a in batch.items()}
    forward = forward_of(objective, params)
    found = objective.examine(forward, rows)
    means = {k: float(m.total / max(m.count, 1)) for k, m in found.items()}
    assert means["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert means["reward_chosen"] == pytest.approx(BETA * ratio[:, 0].mean(), rel=1e-4)
    assert means["reward_rejected"] == pytest.approx(BETA * ratio[:, 1].mean(), rel=1e-4)
    assert means["margin"] == pytest.approx(BETA * difference.mean(), rel=1e-4)
    assert means["accuracy"] == np.mean(difference > 0)
    assert means["logp_chosen"] == pytest.approx(logp[:2, 0].mean(), rel=1e-4)
    assert means["kl"] == pytest.approx(ratio.mean(), rel=1e-4)
    assert float(found["accuracy_significantly"].count) == 1  # that of the first pair alone
    loss, train = objective.loss(forward, rows, objective.weights(rows))
    assert float(loss) == pytest.approx(losses.mean(), rel=1e-4)
    assert set(train) == {k for k in found if k != "loss" and not k.startswith("accuracy_")}


@pytest.mark.parametrize("by_length", [False, True])
def test_pairs_in_one_row_are_read_as_in_rows_of_their_own(params, batch, by_length):
    alone = {name: a[:2] for name, a in batch.items()}
    together = in_fewer_rows({k: a for k, a in alone.items() if k != "reference"}, 2)
    together["reference"] = alone["reference"].reshape(1, 2, 2)
    objective = Preferences(TINY, BETA, by_length=by_length, per_row=2)
    forward = forward_of(objective, params)
    one, many = (
        {k: (float(m.total), float(m.count)) for k, m in objective.examine(forward, rows).items()}
        for rows in ({k: jnp.asarray(a) for k, a in each.items()} for each in (alone, together))
    )
    assert many.keys() == one.keys()
    for name in one:
        assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    shapes = objective.abstract_batch(1, 2 * T)
    assert {k: a.shape for k, a in together.items()} == {k: s.shape for k, s in shapes.items()}


def test_prompts_and_padding_have_no_part_in_an_answer(params, batch):
    objective = Preferences(TINY, BETA)
    rng = np.random.default_rng(1)
    other = dict(batch)
    masked = (batch["segment_ids"] == 0).nonzero()
    other["tokens"] = batch["tokens"].copy()
    other["tokens"][masked] = rng.integers(3, TINY.vocab_size, len(masked[0]))
    results = [
        objective.loss(forward_of(objective, params), rows, jnp.float32(2))[0]
        for rows in ({k: jnp.asarray(a) for k, a in each.items()} for each in (batch, other))
    ]
    assert float(results[0]) == float(results[1])


@pytest.fixture(scope="module")
def start(files):
    return files.untrained("start")


def pairs_of(config, files):
    return prepare_preferences(config.data, files.tokenizer, seq_len=config.seq_len)


def test_the_reference_is_computed_once_and_belongs_to_its_records(files, start, monkeypatch):
    config = files.dpo(init_from=start)
    data, identity = pairs_of(config, files), reference_identity(config)
    found = with_reference(config, data, identity)
    calls = []
    compute = reference_module.reference_logprobs
    monkeypatch.setattr(
        reference_module, "reference_logprobs", lambda *a: calls.append(a) or compute(*a)
    )
    assert with_reference(config, data, identity) == found
    assert not calls
    # What a batch says of its records is what the model says of those rows.
    loader = Loader(found["train"], batch_size=8, seed=0)
    batch = loader.batch(3)
    logits = apply(
        init_params(jax.random.key(0), config.model),
        jnp.asarray(batch["tokens"].reshape(16, -1)),
        config=config.model,
        positions=jnp.asarray(batch["positions"].reshape(16, -1)),
        segment_ids=jnp.asarray(batch["segment_ids"].reshape(16, -1)),
    )
    logp = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float64)[:, :-1]))
    tokens = batch["tokens"].reshape(16, -1)[:, 1:]
    of_target = np.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    mask = target_mask(batch).reshape(16, -1)[:, 1:]
    np.testing.assert_allclose(
        batch["reference"].reshape(16), (of_target * mask).sum(axis=1), rtol=1e-4
    )
    loader.close()
    # A damaged file is computed anew, to the same bytes.
    path = Path(found["train"].parts[0].columns)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with_reference(config, data, identity)
    assert len(calls) == 1
    assert path.read_bytes() == whole


def test_the_reference_of_pairs_that_share_rows_is_that_of_pairs_alone(files, start):
    found = []
    for per_row in (1, 4):
        config = files.dpo(init_from=start, pairs_per_row=per_row)
        data = prepare_preferences(
            config.data, files.tokenizer, seq_len=config.seq_len, per_row=per_row
        )
        part = with_reference(config, data, reference_identity(config))["train"].parts[0]
        whole = Mixture((part,), (1.0,))
        loader = Loader(whole, batch_size=part.num_records, seed=0, shuffle=False)
        batch = loader.batch(0)
        loader.close()
        there = batch["segment_ids"].max(axis=(1, 2))
        texts = {}
        for r, k in np.ndindex(len(there), per_row):
            own = batch["segment_ids"][r] == k + 1
            if k < there[r]:
                ids = [tuple(batch["tokens"][r, side][own[side]]) for side in (0, 1)]
                texts[tuple(ids)] = batch["reference"][r, k]
        assert not batch["reference"][there[:, None] <= np.arange(per_row)].any()
        found.append((len(there), texts))
    (rows, alone), (fewer, together) = found
    assert fewer < rows
    assert together.keys() == alone.keys()
    for ids, logp in alone.items():
        np.testing.assert_allclose(together[ids], logp, rtol=1e-4)


def test_other_weights_types_and_functions_are_another_reference(files, start):
    config = files.dpo(init_from=start)
    identity = reference_identity(config)
    other = files.untrained("other", seed=1)
    assert reference_identity(replace(config, init_from=other)) != identity
    for change in ({"dtype": "bfloat16"}, {"param_dtype": "bfloat16"}, {"rope_theta": 5e5}):
        changed = replace(config, model=replace(config.model, **change))
        assert reference_identity(changed) != identity
    same = replace(config, model=replace(config.model, remat="full"), steps=9, beta=0.5)
    assert reference_identity(same) == identity


def test_a_run_begins_at_ln_2_and_refuses_another_reference(files, start, tmp_path):
    config = files.dpo(init_from=start, workdir=str(tmp_path / "run"), steps=1)
    assert dpo(config).loss == pytest.approx(np.log(2), abs=1e-6)
    line = facts(tmp_path / "run")[0]
    assert abs(line["train/reward_chosen"]) < 1e-5
    assert abs(line["train/kl"]) < 1e-4
    other = files.untrained("another", seed=2)
    with pytest.raises(InputError, match="was trained on another reference"):
        dpo(replace(config, steps=2, init_from=other))
    assert dpo(replace(config, steps=2)).loss < np.log(2)


def test_the_reference_stands_on_the_base_in_fewer_bits_that_adapters_have(files, start, tmp_path):
    lora = LoraConfig(rank=2, base="nf4")
    config = files.dpo(init_from=start, workdir=str(tmp_path / "run"), steps=1, lora=lora)
    assert dpo(config).loss == pytest.approx(np.log(2), abs=1e-6)
    assert abs(facts(tmp_path / "run")[0]["train/kl"]) < 1e-4


def test_what_cannot_be_optimised_is_refused(files, start):
    with pytest.raises(InputError, match=r"label_smoothing=0.1 does not go with loss=ipo"):
        files.dpo(loss="ipo", label_smoothing=0.1)
    with pytest.raises(InputError, match=r"beta=0.0 must be positive"):
        files.dpo(beta=0.0)
    with pytest.raises(InputError, match=r"model.head=score must be language"):
        files.dpo(model=replace(files.dpo().model, head="score"))
    with pytest.raises(InputError, match="init_from is empty"):
        files.dpo(init_from="")


EXPERIMENT = """\
import json
from llama_jax.config_align import DpoConfig
from llama_jax.config_file import from_dict
CONFIG = from_dict(DpoConfig, json.loads({values!r}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_gives_the_same_bytes(files, start, tmp_path):
    from dataclasses import asdict

    from tests.align.killing import killed_after

    def experiment(name):
        config = files.dpo(init_from=start, workdir=str(tmp_path / name), steps=40)
        file = tmp_path / f"{name}.py"
        file.write_text(EXPERIMENT.format(values=json.dumps(asdict(config))))
        return file

    whole, cut = (experiment(name) for name in ("whole", "cut"))
    assert killed_after(["dpo", str(whole)], None) == 0
    for lines in (3, 17):
        assert killed_after(["dpo", str(cut)], (tmp_path / "cut" / "metrics.jsonl", lines)) != 0
    assert killed_after(["dpo", str(cut)], None) == 0
    assert digests(tmp_path / "cut", 40) == digests(tmp_path / "whole", 40)
    assert facts(tmp_path / "cut") == facts(tmp_path / "whole")
    columns = list((files.folder / "cache").glob("reference-*.npz"))
    assert all(np.isfinite(read_columns(str(path))["reference"]).all() for path in columns)
