"""The queue in simulated time: calls arrive, batches take time, and nothing here has a clock or a thread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_runtime.batching import BatchPolicy, Grouping, RowsLeft, rows_left
from mexma_runtime.call.fair_queue import FairQueue

S_PER_TOKEN = 0.001
S_PER_BATCH = 0.01


@dataclass(eq=False)
class Simulated:
    """What a call asks for, when it comes, and what becomes of it."""

    name: str
    lengths: list[int]
    arrives: float = 0.0
    deadline: float = math.inf
    cancelled_at: float = math.inf
    max_rows: int | None = None
    kind: bool = False
    left: RowsLeft = field(init=False)
    computed: list[int] = field(default_factory=list)
    ended_at: float | None = None

    def is_ended(self, now: float) -> bool:
        return now >= min(self.cancelled_at, self.deadline)


@dataclass
class Ran:
    """A batch: when it was formed, and whose rows it had."""

    formed_at: float
    done_at: float
    shares: list[tuple[Simulated, list[int]]]

    def tokens_of(self, request: Simulated) -> int:
        return sum(request.lengths[row] for owner, rows in self.shares if owner is request for row in rows)


def simulate(requests: list[Simulated], policy: BatchPolicy) -> list[Ran]:
    """Run all on one engine, which begins a batch as soon as it is free and something waits."""
    queue: FairQueue[Simulated] = FairQueue(policy.max_batch_tokens)
    coming = sorted(requests, key=lambda request: request.arrives)
    for request in requests:
        request.left = rows_left(np.array(request.lengths, dtype=np.int64), policy, request.max_rows)
    now, batches = 0.0, list[Ran]()
    while coming or queue:
        if not queue:
            now = max(now, coming[0].arrives)
        while coming and coming[0].arrives <= now:
            queue.add(coming.pop(0))
        for request in queue.remove_hopeless(now, S_PER_BATCH):
            request.ended_at = now
        batch = queue.next_batch()
        if not batch:
            continue
        shares = [(request, rows.tolist()) for request, rows in batch]
        n_tokens = sum(request.lengths[row] for request, rows in shares for row in rows)
        done_at = now + S_PER_BATCH + S_PER_TOKEN * n_tokens
        batches.append(Ran(now, done_at, shares))
        for request, rows in shares:
            request.computed += rows
            if not request.left.n_rows:
                request.ended_at = done_at
        now = done_at
    return batches


policies = st.builds(
    BatchPolicy,
    max_batch_tokens=st.integers(1, 60),
    grouping=st.sampled_from(Grouping),
    max_batch_rows=st.none() | st.integers(1, 9),
)
arrivals = st.lists(
    st.builds(
        Simulated,
        name=st.just("any"),
        lengths=st.lists(st.integers(1, 25), min_size=1, max_size=40),
        arrives=st.floats(0, 0.5),
        deadline=st.just(math.inf) | st.floats(0, 1),
        cancelled_at=st.just(math.inf) | st.floats(0, 1),
        max_rows=st.none() | st.integers(1, 5),
        kind=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
patient = arrivals.map(
    lambda requests: [
        Simulated(request.name, request.lengths, request.arrives, max_rows=request.max_rows, kind=request.kind)
        for request in requests
    ]
)


@given(patient, policies)
def test_every_row_is_computed_once_and_nothing_waits_for_ever(requests: list[Simulated], policy: BatchPolicy) -> None:
    batches = simulate(requests, policy)

    for request in requests:
        assert sorted(request.computed) == list(range(len(request.lengths)))
        assert request.ended_at is not None
    assert all(batch.shares for batch in batches)


@given(arrivals, policies)
def test_a_batch_keeps_the_policy(requests: list[Simulated], policy: BatchPolicy) -> None:
    for batch in simulate(requests, policy):
        lengths = [request.lengths[row] for request, rows in batch.shares for row in rows]
        is_padded = policy.grouping is Grouping.PADDED
        n_tokens = len(lengths) * max(lengths) if is_padded else sum(lengths)
        assert len(lengths) == 1 or n_tokens <= policy.max_batch_tokens
        limits = [policy.max_batch_rows, *(request.max_rows for request, _ in batch.shares)]
        assert all(limit is None or len(lengths) <= limit for limit in limits)
        assert policy.grouping is not Grouping.EQUAL or len(set(lengths)) == 1
        assert len({request.kind for request, _ in batch.shares}) == 1
        assert len({id(request) for request, _ in batch.shares}) == len(batch.shares)


@given(arrivals, policies)
def test_what_is_cancelled_or_late_is_not_computed_any_more(requests: list[Simulated], policy: BatchPolicy) -> None:
    batches = simulate(requests, policy)

    for batch in batches:
        for request, _ in batch.shares:
            assert batch.formed_at < request.cancelled_at
            assert batch.formed_at < request.deadline
    for request in requests:
        assert request.ended_at is not None  # computed, or given up
        was_given_up = len(request.computed) < len(request.lengths)
        assert not was_given_up or min(request.deadline, request.cancelled_at) < math.inf


@given(patient, policies)
def test_nobody_waits_for_more_than_two_turns_of_each_of_the_others(
    requests: list[Simulated], policy: BatchPolicy
) -> None:
    batches = simulate(requests, policy)

    longest = max(length for request in requests for length in request.lengths)
    turn = 2 * max(policy.max_batch_tokens, longest)  # what is left of the last one included
    for request in requests:
        first = next(place for place, batch in enumerate(batches) if batch.tokens_of(request))
        before = [batch for batch in batches[:first] if batch.formed_at >= request.arrives]
        for other in requests:
            opened = sum(batch.tokens_of(other) for batch in before if batch.shares[0][0] is other)
            assert opened <= 2 * turn


@pytest.mark.parametrize("grouping", Grouping)
@given(data=st.data())
@settings(max_examples=40)
def test_one_text_beside_a_call_of_many_waits_for_two_batches(grouping: Grouping, data: st.DataObject) -> None:
    """The one that runs when it comes, and its own."""
    many = Simulated("many", data.draw(st.lists(st.integers(1, 60), min_size=200, max_size=400)))
    one = Simulated("one", [data.draw(st.integers(1, 60))], arrives=data.draw(st.floats(0, 1.5)))
    batches = simulate([many, one], BatchPolicy(max_batch_tokens=64, grouping=grouping))

    own = next(place for place, batch in enumerate(batches) if batch.tokens_of(one))
    assert not [batch for batch in batches[:own] if batch.formed_at >= one.arrives > 0]


@given(st.integers(0, 999).map(Random), st.sampled_from(Grouping), st.integers(2, 5), st.integers(1, 20))
@settings(max_examples=40)
def test_calls_of_many_texts_get_equal_shares(random: Random, grouping: Grouping, n_calls: int, spread: int) -> None:
    """Of what is computed, padding included, also where their lengths have nothing in common."""
    policy = BatchPolicy(max_batch_tokens=240, grouping=grouping)
    drawn = [random.randint(1, spread) for _ in range(2000)]
    calls = [Simulated(str(i), [length + spread * i for length in drawn]) for i in range(n_calls)]
    n_rows, n_tokens = dict.fromkeys(calls, 0), dict.fromkeys(calls, 0)
    for batch in simulate(calls, policy):
        longest = max(call.lengths[row] for call, rows in batch.shares for row in rows)
        for call, rows in batch.shares:
            n_rows[call] += len(rows)
            n_tokens[call] += sum(longest if grouping is Grouping.PADDED else call.lengths[row] for row in rows)
        if len(drawn) in n_rows.values():
            break  # the others share what it leaves
        # One quantum, and twice the largest batch (Shreedhar and Varghese, 1995).
        assert max(n_tokens.values()) - min(n_tokens.values()) <= 3 * policy.max_batch_tokens


def test_the_nearest_deadline_goes_first_in_a_round_and_no_later_one_is_starved() -> None:
    policy = BatchPolicy(max_batch_tokens=10, grouping=Grouping.EQUAL)
    calls = [Simulated("none", [7]), Simulated("late", [8], deadline=9.0), Simulated("soon", [9], deadline=5.0)]
    hurried = [Simulated(f"hurry-{i}", [10], arrives=0.001 * i, deadline=2.0) for i in range(1, 40)]

    batches = simulate([*calls, *hurried], policy)

    names = [batch.shares[0][0].name for batch in batches]
    assert names[:3] == ["soon", "late", "none"]


def test_who_will_be_late_makes_way_for_others_and_tries_where_there_are_none() -> None:
    """Of 40 tokens in batches of 10 each takes at least a hundredth of a second."""
    policy = BatchPolicy(max_batch_tokens=10, grouping=Grouping.EQUAL)
    for others in ([], [Simulated("other", [3])]):
        hopeless = Simulated("hopeless", [10] * 4, deadline=0.039)
        simulate([hopeless, *others], policy)
        assert len(hopeless.computed) == (0 if others else 2)


def test_what_waits_is_taken_along() -> None:
    policy = BatchPolicy(max_batch_tokens=64, grouping=Grouping.EQUAL)
    singles = [Simulated(str(i), [length]) for i, length in enumerate([4, 5, 4, 6, 4, 5])]

    batches = simulate(singles, policy)

    assert [[request.name for request, _ in batch.shares] for batch in batches] == [["0", "2", "4"], ["1", "5"], ["3"]]


def test_whoever_has_little_is_served_whole_and_the_rest_is_shared_evenly() -> None:
    policy = BatchPolicy(max_batch_tokens=100, grouping=Grouping.MIXED)
    calls = [Simulated("a", [10] * 9), Simulated("b", [10] * 8), Simulated("c", [10] * 2)]

    first = simulate(calls, policy)[0]

    assert {request.name: len(rows) for request, rows in first.shares} == {"c": 2, "a": 4, "b": 4}


@pytest.mark.parametrize("grouping", Grouping)
def test_who_could_fill_a_batch_makes_no_short_one_long(grouping: Grouping) -> None:
    policy = BatchPolicy(max_batch_tokens=100, grouping=grouping)
    calls = [Simulated("many", [10] * 50), Simulated("one", [10], arrives=0.001), Simulated("two", [10], arrives=0.001)]

    first, second, *_ = simulate(calls, policy)

    assert [request.name for request, _ in first.shares] == ["many"]
    assert [request.name for request, _ in second.shares] == ["one", "two"]


def test_what_waits_no_more_is_in_no_batch() -> None:
    policy = BatchPolicy(max_batch_tokens=8, grouping=Grouping.EQUAL)
    queue: FairQueue[Simulated] = FairQueue(policy.max_batch_tokens)
    one, other = Simulated("one", [3, 3]), Simulated("other", [3])
    for request in (one, other):
        request.left = rows_left(np.array(request.lengths), policy)
        queue.add(request)

    queue.remove(one)
    queue.remove(one)
    assert [(request.name, rows.tolist()) for request, rows in queue.next_batch()] == [("other", [0])]
    assert (queue.next_batch(), len(queue)) == ([], 0)
    queue.add(one)
    assert (queue.remove_all(), len(queue)) == ([one], 0)
