"""The scheduler's invariants over random histories, without jax; pages and their prefixes."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_jax.config import InputError
from llama_jax.infer.engine.pages import PagePool, prefixes
from llama_jax.infer.engine.scheduler import Layout, Scheduled, Scheduler

LAYOUT = Layout(rows=3, num_pages=12, page=4, chunks=(4, 8), budget=8, max_len=40)


class Histories(RuleBasedStateMachine):
    """Sequences come, are computed and drawn, end or are cancelled, in any order."""

    def __init__(self):
        super().__init__()
        self.scheduler = Scheduler(LAYOUT)
        self.came, self.written = [], {}

    @rule(
        kind=st.integers(0, 2),
        length=st.integers(1, 30),
        new=st.integers(0, 10),
        scope=st.sampled_from([b"", b"a"]),
        reuse=st.booleans(),
        follow=st.booleans(),
    )
    def submit(self, kind, length, new, scope, reuse, follow):
        prompt = tuple((kind + 1) * (i + 1) for i in range(length))
        sequence = Scheduled(prompt=prompt, limit=length + new, scope=scope, reuse=reuse)
        if follow and self.came:
            leader = self.came[-1]
            sequence.prompt, sequence.limit = leader.prompt, leader.limit
            sequence.scope, sequence.after = leader.scope, leader
        self.scheduler.check(sequence)
        self.scheduler.submit(sequence)
        self.came.append(sequence)

    @precondition(lambda self: self.came)
    @rule(which=st.integers(0, 100))
    def end(self, which):
        self.scheduler.end(self.came[which % len(self.came)])

    @rule(draws=st.integers(0, 3))
    def step(self, draws):
        waiting = list(self.scheduler.waiting)
        plan = self.scheduler.plan()
        # First come, first served, and somebody is always served.
        assert plan.admitted == waiting[: len(plan.admitted)]
        assert plan.chunks or plan.drawing or not waiting
        for sequence in plan.admitted:
            self.check_known(sequence)
        assert sum(c.size for c in plan.chunks) <= LAYOUT.budget or len(plan.chunks) == 1
        for chunk in plan.chunks:
            self.fill(chunk)
        for sequence in plan.drawing:
            new = min(draws, sequence.limit - sequence.length)
            self.scheduler.drawn(sequence, new)
            if sequence.length == sequence.limit:
                self.scheduler.end(sequence)

    def check_known(self, sequence):
        """Pages that are taken over hold this prompt's tokens, of this scope."""
        assert sequence.cached % LAYOUT.chunks[-1] == 0
        for n in range(sequence.cached // LAYOUT.page):
            end = (n + 1) * LAYOUT.page
            content = sequence.scope, tuple(sequence.prompt[:end])
            assert self.written[sequence.pages[n]] == content

    def fill(self, chunk):
        """Chunks have the borders that the prompt alone gives, and no page of them is shared."""
        sequence, largest = chunk.sequence, LAYOUT.chunks[-1]
        assert chunk.start == sequence.done
        assert chunk.start % largest == 0
        assert chunk.start + chunk.count <= len(sequence.prompt) - 1
        assert chunk.size == largest or chunk.start + chunk.count == len(sequence.prompt) - 1
        held = Counter(p for s in self.scheduler.running.values() for p in s.pages)
        for n in range(chunk.start // 4, -(-(chunk.start + chunk.count) // 4)):
            page = sequence.pages[n]
            assert held[page] == 1
            self.written[page] = sequence.scope, tuple(sequence.prompt[: (n + 1) * LAYOUT.page])
        self.scheduler.filled(chunk)

    @invariant()
    def every_page_is_accounted_for(self):
        pool, running = self.scheduler.pool, self.scheduler.running
        held = Counter(page for s in running.values() for page in s.pages)
        assert held == pool._holders
        parts = [list(held), list(pool._unheld), list(pool._free)]
        assert sorted(page for part in parts for page in part) == list(range(1, LAYOUT.num_pages))
        assert pool.held + pool.available == pool.size
        assert {pool._page_of[name] for name in pool._page_of} == set(pool._prefix_of)

    @invariant()
    def rows_are_one_sequences_each(self):
        running = self.scheduler.running
        assert all(0 <= row < LAYOUT.rows and s.row == row for row, s in running.items())
        for sequence in running.values():
            assert len(sequence.pages) == LAYOUT.pages_of(sequence.limit)
            assert len(set(sequence.pages)) == len(sequence.pages)

    def teardown(self):
        for _ in range(400):
            if self.scheduler.idle:
                break
            self.step(3)
        assert self.scheduler.idle
        assert self.scheduler.pool.held == 0


Histories.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(0, 20), st.binary(max_size=3))
def test_a_prefix_is_named_by_all_its_tokens_and_its_scope(tokens, cut, scope):
    names = prefixes(tokens, 3, scope)
    assert len(names) == len(tokens) // 3
    assert prefixes(tokens[:cut], 3, scope) == names[: min(cut, len(tokens)) // 3]
    assert not set(names) & set(prefixes(tokens, 3, scope + b"x"))
    changed = [tokens[0] + 1, *tokens[1:]] if tokens else []
    assert not set(names) & set(prefixes(changed, 3, scope))


def test_the_least_recently_used_prefix_is_evicted_first_its_end_before_its_beginning():
    pool = PagePool(6)
    first, second = pool.take([], 3), pool.take([], 2)
    for page, name in zip([*first, *second], b"abcde", strict=True):
        pool.publish(page, bytes([name]))
    pool.release(first)
    pool.release(second)
    assert pool.known([b"a", b"b", b"c"]) == first
    pool.release(pool.take([], 1))
    assert pool.known([b"a", b"b", b"c"]) == first[:2]
    pool.release(pool.take(pool.known([b"a", b"b"]), 0))
    pool.take([], 3)
    assert pool.known([b"d", b"e"]) == []
    assert pool.known([b"a", b"b"]) == first[:2]


def test_a_pool_gives_no_more_than_it_has_and_takes_back_what_is_held_alone():
    pool = PagePool(4)
    pages = pool.take([], 2)
    with pytest.raises(ValueError, match="1 pages are missing for 2 more"):
        pool.take([], 2)
    assert pool.held == 2
    pool.release(pages)
    with pytest.raises(ValueError, match=f"page {pages[1]} is not held"):
        pool.release(pages)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"rows": 0}, "rows=0 must be positive"),
        ({"num_pages": 1}, "num_pages=1 must be more than rows=1"),
        ({"chunks": (8, 4)}, "must be positive and ascending"),
        ({"chunks": (4, 6)}, "6, must be a multiple of page=4"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(sizes, said):
    with pytest.raises(InputError, match=said):
        Layout(**{"rows": 1, "num_pages": 4, "page": 4, "chunks": (4,), "budget": 4,
                  "max_len": 9, **sizes})  # fmt: skip
