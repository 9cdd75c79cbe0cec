import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import DataConfig
from llama_jax.data.loader import Loader
from llama_jax.data.prepare import Mixture, prepare


@pytest.fixture(scope="module")
def mixture(tokenizer, cache, prepared) -> Mixture:
    config = DataConfig(dataset="tales:40=0.75,tales:60=0.25", cache_dir=cache, workers=1)
    return prepare(config, tokenizer, seq_len=64)["train"]


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def rows_of(host, hosts):
    """Rows of a batch of 8 that one of the hosts reads; they need not be neighbours."""
    return np.flatnonzero(np.arange(8) % hosts == host)


def join(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 10_000), hosts=st.sampled_from([1, 2, 4, 8]))
def test_global_batch_does_not_depend_on_hosts(mixture, seed, step, hosts):
    one = Loader(mixture, batch_size=8, seed=seed)
    many = [Loader(mixture, batch_size=8, seed=seed, rows=rows_of(i, hosts))
            for i in range(hosts)]  # fmt: skip
    whole = join([host.batch(step) for host in many])
    order = np.argsort(np.concatenate([rows_of(i, hosts) for i in range(hosts)]))
    assert_equal({name: rows[order] for name, rows in whole.items()}, one.batch(step))
    for host in many:
        np.testing.assert_array_equal(host.batch_ids(step), one.batch_ids(step))


@settings(deadline=None, max_examples=8)
@given(start=st.integers(0, 300), hosts=st.sampled_from([1, 2, 4, 8]))
def test_restart_at_any_step_goes_on_alike(mixture, start, hosts):
    loader = Loader(mixture, batch_size=8, seed=3, rows=rows_of(hosts - 1, hosts))
    again = Loader(mixture, batch_size=8, seed=3, rows=rows_of(hosts - 1, hosts))
    with loader.iterate(start) as batches:
        for step in range(start, start + 3):
            assert_equal(next(batches), again.batch(step))


def test_some_steps_can_be_left_out(prepared):
    loader = Loader(prepared["train"], batch_size=2, seed=0, shuffle=False)
    with loader.iterate(1, every=3) as batches:
        taken = list(batches)
    steps = range(1, len(loader), 3)
    assert len(taken) == len(steps) > 2
    for batch, step in zip(taken, steps, strict=True):
        assert_equal(batch, loader.batch(step))


def test_rows_are_the_records_that_the_ids_name(prepared):
    train = prepared["train"]
    loader = Loader(train, batch_size=4, seed=1)
    in_order = Loader(train, batch_size=1, seed=1, shuffle=False)
    for step in (0, 7, 100):
        batch = loader.batch(step)
        for row, record_id in enumerate(loader.batch_ids(step)):
            expected = in_order.batch(int(record_id))
            for name in expected:
                np.testing.assert_array_equal(batch[name][row], expected[name][0])


def test_every_epoch_is_a_fresh_permutation(prepared):
    train = prepared["train"]
    loader = Loader(train, batch_size=1, seed=5)
    size = train.num_records
    epochs = [[int(loader.batch_ids(s)[0]) for s in range(e * size, (e + 1) * size)]
              for e in range(3)]  # fmt: skip
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != list(range(size))
    other = Loader(train, batch_size=1, seed=6)
    assert [int(other.batch_ids(s)[0]) for s in range(size)] != epochs[0]


def test_mixture_is_drawn_by_weight(mixture):
    loader = Loader(mixture, batch_size=100, seed=0)
    first = mixture.parts[0].num_records
    ids = np.concatenate([loader.batch_ids(s) for s in range(10)])
    assert (ids < first).mean() == pytest.approx(0.75, abs=0.01)
    counts = Counter(ids[ids < first].tolist())
    assert max(counts.values()) - min(counts[i] for i in range(first)) <= 1  # epochs, not draws


def test_validation_has_every_record_once(prepared):
    held_out = prepared["validation"]
    hosts = [Loader(held_out, batch_size=8 * 6, seed=0, shuffle=False,
                    rows=np.arange(i * 6, i * 6 + 6)) for i in range(8)]  # fmt: skip
    assert held_out.num_records % 48 != 0
    ids = np.concatenate([hosts[0].batch_ids(s) for s in range(len(hosts[0]))])
    assert sorted(ids[ids >= 0]) == list(range(held_out.num_records))
    last = join([host.batch(len(host) - 1) for host in hosts])
    filled = (last["segment_ids"] > 0).any(axis=1)
    np.testing.assert_array_equal(filled, hosts[0].batch_ids(len(hosts[0]) - 1) >= 0)
    assert not last["loss_mask"][~filled].any()
    with pytest.raises(IndexError):
        hosts[0].batch(len(hosts[0]))


def test_parts_follow_one_another_where_order_counts(mixture):
    together = Loader(mixture, batch_size=1, seed=0, shuffle=False)
    number = 0
    for part in mixture.parts:
        alone = Loader(Mixture((part,), (1.0,)), batch_size=1, seed=0, shuffle=False)
        for step in (0, 1, len(alone) - 1):
            assert_equal(together.batch(number + step), alone.batch(step))
        number += len(alone)
    assert number == len(together)


def test_validation_iteration_ends_and_threads_stop(prepared):
    loader = Loader(prepared["validation"], batch_size=10, seed=0, shuffle=False)
    with loader.iterate(2) as batches:
        assert sum(1 for _ in batches) == len(loader) - 2
    endless = Loader(prepared["train"], batch_size=4, seed=0)
    with endless.iterate() as batches:
        next(batches)
    for thread in threading.enumerate():
        if "grain" in thread.name:
            thread.join(timeout=60)  # what it was reading when the iteration closed
    assert not [t for t in threading.enumerate() if "grain" in t.name]


def test_batch_shapes(prepared):
    batch = Loader(prepared["train"], batch_size=4, seed=0).batch(0)
    assert {name: (v.shape, v.dtype.name) for name, v in batch.items()} == {
        "tokens": ((4, 64), "int32"),
        "segment_ids": ((4, 64), "int32"),
        "positions": ((4, 64), "int32"),
        "loss_mask": ((4, 64), "uint8"),
    }


def test_damage_is_named(tokenizer, tmp_path):
    config = DataConfig(dataset="tales:40", cache_dir=str(tmp_path), workers=1)
    train = prepare(config, tokenizer, seq_len=64)["train"]
    (file,) = tmp_path.rglob("packed-train*")
    content = bytearray(file.read_bytes())
    content[3000] ^= 4
    file.write_bytes(content)
    loader = Loader(train, batch_size=train.num_records, seed=0, shuffle=False)
    with pytest.raises(RuntimeError, match=rf"{file}, record \d+ is damaged"):
        loader.batch(0)
