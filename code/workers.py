"""Work spread over processes, results in order, with a bounded amount in flight."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from failures import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """The cores this job may use: SageMaker's SM_NUM_CPUS where it is set, else what the system allows."""
    given = os.environ.get("SM_NUM_CPUS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """`map(function, items)` in `count` worker processes.

    At most four items a worker are in flight, so memory holds neither all items nor all results. Workers are spawned,
    not forked: PyTorch's threads do not survive a fork. They import the main script, which therefore imports PyTorch
    inside functions.

    Raises:
        UserError: a worker was killed, which is what running out of memory looks like.
    """
    if count <= 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 4 * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for want of memory; take an instance with more memory a "
                "core, or lower --max-pixels"
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _follow_parent() -> None:
    """Leave ending to the parent, and end when it is gone.

    A job is stopped by a SIGTERM to all of its processes: a worker that went first would look like one that was killed.
    And after a SIGKILL of the parent a worker would wait for work for ever.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
