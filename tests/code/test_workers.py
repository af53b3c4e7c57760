import operator
import os
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workers
from failures import UserError


@given(st.lists(st.integers(), max_size=30), st.integers(1, 40))
def test_batches_are_the_items(items: list[int], size: int) -> None:
    batches = list(workers.batches(iter(items), size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_results_come_in_order_and_no_more_is_read_than_is_needed(count: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    results = workers.ordered_map(partial(operator.mul, 3), items(), count)
    assert next(results) == 0
    assert len(taken) <= max(1, 4 * count)
    assert list(results) == [3 * item for item in range(1, 40)]


def test_a_killed_worker_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match="a worker process was killed, most likely for want of memory"):
        list(workers.ordered_map(os._exit, [9], 2))


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(workers.ordered_map(partial(operator.floordiv, 1), [1, 0], 2))


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_NUM_CPUS", "7")
    assert workers.cores() == 7
    for odd in ("", "0", "many"):
        monkeypatch.setenv("SM_NUM_CPUS", odd)
        assert workers.cores() == len(os.sched_getaffinity(0))
