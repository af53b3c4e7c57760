"""Samples of the system while a job trains, in SageMaker's own format: CPU, memory, disk, network.

    python profiler.py --output DIR --interval-ms 500

A process of its own, so that the training's pace does not disturb the sampling; it ends when its parent does. Files are
`DIR/system/incremental/<YYYYMMDDHH>/<minute>.algo-1.json`, a JSON object a line, one file a minute (UTC).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


@contextmanager
def sampling(output: Path | None, interval_ms: int) -> Iterator[None]:
    """Sample the system in a child process for as long as the block runs; not without an output, nor without psutil."""
    if output is None:
        yield
        return
    try:
        import psutil  # noqa: F401 - the child needs it
    except ImportError:
        print("WARNING: psutil is not installed: training goes on without system metrics", flush=True)
        yield
        return
    command = [sys.executable, __file__, "--output", str(output), "--interval-ms", str(interval_ms)]
    command += ["--parent", str(os.getpid())]
    child = subprocess.Popen(command)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Sampler:
    """Turns the system's counters into SageMaker's events; names and dimensions are those its own jobs show."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        self._node = os.environ.get("SM_CURRENT_HOST", "algo-1")
        self._counters: dict[str, int] = {}
        self._time = time.time()
        self.sample()  # rates need a first reading

    def sample(self) -> list[dict[str, Any]]:
        """The events of this moment: percentages, and rates since the last one."""
        now = time.time()
        seconds, self._time = max(now - self._time, 1e-3), now
        figures: list[tuple[str, str, str, float]] = []
        for core, share in enumerate(self._psutil.cpu_times_percent(percpu=True)):
            waiting = getattr(share, "iowait", 0.0)
            figures.append(("cpu", f"cpu{core}", "CPUUtilization", round(max(100 - share.idle - waiting, 0), 2)))
            figures.append(("cpu", f"cpu{core}", "I/OWaitPercentage", waiting))
        figures.append(("memory", "MemoryUsedPercent", "", self._psutil.virtual_memory().percent))
        disk, network = self._psutil.disk_io_counters(), self._psutil.net_io_counters()  # None where there are none
        for kind, name, dimension, source, fields in (
            ("i/o", "IOPS", "", disk, ("read_count", "write_count")),
            ("i/o", "ReadThroughputInBytesPerSecond", "", disk, ("read_bytes",)),
            ("i/o", "WriteThroughputInBytesPerSecond", "", disk, ("write_bytes",)),
            ("network", "ReceiveBytesPerSecond", "Algorithm", network, ("bytes_recv",)),
            ("network", "TransmitBytesPerSecond", "Algorithm", network, ("bytes_sent",)),
        ):
            counter = sum(getattr(source, field, 0) for field in fields)
            rate = max(counter - self._counters.get(name, counter), 0) / seconds
            self._counters[name] = counter
            figures.append((kind, name, dimension, round(rate, 2)))
        keys = ("Type", "Name", "Dimension", "Value")
        return [{**dict(zip(keys, figure, strict=True)), "NodeId": self._node, "Timestamp": now} for figure in figures]


def path_of(output: Path, timestamp: float, node: str) -> Path:
    """The file for events of that moment: a folder an hour, a file a minute."""
    hour = time.strftime("%Y%m%d%H", time.gmtime(timestamp))
    return output / "system" / "incremental" / hour / f"{int(timestamp // 60) * 60}.{node}.json"


def main() -> None:
    """Sample until told to stop, or until the parent is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--interval-ms", type=int, default=500)
    # Given, not asked for: by the time this process asks, its parent may be gone and another have adopted it.
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process whose end is the end of this one")
    options = parser.parse_args()
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sampler = Sampler()
    due = time.monotonic()
    while not stopped and os.getppid() == options.parent:
        due += options.interval_ms / 1000
        while (left := due - time.monotonic()) > 0 and not stopped:  # a signal does not end a sleep: short ones do
            time.sleep(min(left, 0.1))
        events = sampler.sample()
        path = path_of(options.output, events[0]["Timestamp"], events[0]["NodeId"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)


if __name__ == "__main__":
    main()
