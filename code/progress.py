"""How far a long job is, as plain lines in its log: a bar would fill CloudWatch with carriage returns."""

import time


class Progress:
    """Prints `what: 1200 of 6680, 23.4/s` every few seconds, and once at the end."""

    def __init__(self, what: str, total: int, seconds: float = 10.0) -> None:
        self._what, self._total, self._seconds = what, total, seconds
        self._done = 0
        self._start = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= self._seconds:
            self._last = now
            rate = self._done / max(now - self._start, 1e-9)
            print(f"{self._what}: {self._done} of {self._total}, {rate:.1f}/s", flush=True)
