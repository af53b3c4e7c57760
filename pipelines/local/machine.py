"""What every part of the service works with: where things are kept, and who runs now.

A `Task` is one thing that runs in a thread of its own (a job, a tuning job, a pipeline execution) and can be asked to
stop. `Slots` bounds how many jobs run at the same time.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.local.logs import Logs
from pipelines.local.objects import Objects
from pipelines.local.store import Store

log = logging.getLogger(__name__)

_LAST_GRACE = 5.0

SERVICE_STOPPED = "The local service was stopped while this was running."
SERVICE_DIED = "The local service ended unexpectedly while this was running."


@dataclass(frozen=True)
class Options:
    """How the service runs."""

    slots: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Jobs that run at the same time; a trial of a tuning job counts as one."""

    stop_grace: float = 120.0
    """Seconds between SIGTERM and SIGKILL when a job is stopped; 120 is what AWS gives."""


class Task:
    """Something that runs and can be asked to stop."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        self.done = threading.Event()
        self._stop = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self.reason = ""

    @property
    def stopping(self) -> bool:
        """Whether somebody asked it to stop."""
        return self._stop.is_set()

    def stop(self, reason: str = "") -> None:
        """Ask it to stop, once; `reason` is for the record when nobody asked through the API."""
        with self._lock:
            if self._stop.is_set():
                return
            self.reason = reason
            self._stop.set()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def on_stop(self, listener: Callable[[], None]) -> None:
        """Call `listener` when asked to stop; at once if that has happened."""
        with self._lock:
            if not self._stop.is_set():
                self._listeners.append(listener)
                return
        listener()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until asked to stop."""
        self._stop.wait(seconds)


class Slots:
    """How many jobs may run at once; first come, first served."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._queue: list[object] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, task: Task, wanted: int = 1) -> Iterator[bool]:
        """Wait for `wanted` slots (all of them if there are fewer); False if asked to stop before they were free."""
        wanted = min(wanted, self.count)
        ticket = object()
        task.on_stop(self._wake)
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: task.stopping or (self._queue[0] is ticket and self._free >= wanted))
            self._queue.remove(ticket)
            got = not task.stopping
            if got:
                self._free -= wanted
            self._changed.notify_all()
        try:
            yield got
        finally:
            if got:
                with self._changed:
                    self._free += wanted
                    self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Machine:
    """The state directory, opened, and the tasks that run."""

    def __init__(self, state: Path, url: str, options: Options) -> None:
        self.state = state
        self.url = url
        self.options = options
        self.store = Store(state / "state.db")
        self.objects = Objects(state / "s3", state / "tmp", state / "state.db")
        self.logs = Logs(state / "logs")
        self.slots = Slots(options.slots)
        self.closing = False
        self._tasks: dict[tuple[str, str], Task] = {}
        self._lock = threading.Lock()

    def grace(self) -> float:
        """Seconds a job has from SIGTERM to SIGKILL; fewer when the service itself is told to end."""
        return min(self.options.stop_grace, _LAST_GRACE) if self.closing else self.options.stop_grace

    def start(self, kind: str, name: str, run: Callable[[Task], None]) -> Task:
        """Run `run(task)` in a thread of its own. It records its own outcome: what it raises is a bug, and logged."""
        task = Task(kind, name)
        with self._lock:
            self._tasks[kind, name] = task

        def body() -> None:
            try:
                run(task)
            except Exception:
                log.exception("%s %s ended in a bug of the service", kind, name)
            finally:
                with self._lock:
                    self._tasks.pop((kind, name), None)
                task.done.set()

        if self.closing:
            task.stop(SERVICE_STOPPED)
        threading.Thread(target=body, name=f"{kind} {name}", daemon=True).start()
        return task

    def task(self, kind: str, name: str) -> Task | None:
        """The task while it runs."""
        with self._lock:
            return self._tasks.get((kind, name))

    def wait(self, kind: str, name: str) -> None:
        """Until the task has ended; at once if it has."""
        task = self.task(kind, name)
        if task:
            task.done.wait()

    def stop_all(self, timeout: float) -> None:
        """Ask everything to stop and wait for it."""
        self.closing = True
        with self._lock:
            tasks = list(self._tasks.values())
        for task in tasks:
            task.stop(SERVICE_STOPPED)
        for task in tasks:
            if not task.done.wait(timeout):
                log.error("%s %s did not stop within %.0f s", task.kind, task.name, timeout)

    def close(self) -> None:
        """Close what is open on disk."""
        self.objects.close()
        self.store.close()
