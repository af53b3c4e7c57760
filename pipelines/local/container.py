"""What a container is on AWS: a process with an /opt/ml tree of its own.

`/opt/ml` in the command and the environment is mapped to the job's own directory; a script that takes its paths from
options or from SM_* variables never notices. The process leads a group of its own, which is stopped as a whole.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.local import logs
from pipelines.local.machine import Machine, Task
from pipelines.local.names import REGION
from pipelines.local.store import Store

log = logging.getLogger(__name__)

_OPT_ML = re.compile(r"(?<![\w./-])/opt/ml(?![\w.-])")
_TICK = 0.1  # seconds between looks at a running process
_PYTHON = {"python", "python3"}
# All that a job sees of the environment the service was started in: no credentials, no settings of the user's.
_INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Container:
    """One process to be."""

    name: str
    """Job and host, such as `my-job/algo-1`; unique among what runs."""
    root: Path
    """Its own directory; /opt/ml is `root/opt/ml`."""
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    """OMP_NUM_THREADS, unless the environment sets it."""

    @property
    def opt_ml(self) -> Path:
        """The tree that /opt/ml stands for."""
        return self.root / "opt" / "ml"


@dataclass(frozen=True)
class Outcome:
    """How it ended. `code` is the exit status (negative: the signal that ended it)."""

    code: int
    ended: Literal["exited", "stopped", "timed out"]
    which: int = 0
    """Whose exit status it is: the place among the containers of the first that failed."""


def mapped(text: str, opt_ml: Path) -> str:
    """`text` with every path under /opt/ml moved into the job's own tree."""
    return _OPT_ML.sub(lambda _: str(opt_ml), text)


def environment(machine: Machine, container: Container) -> dict[str, str]:
    """The whole environment of the process: a few inherited names, our own settings, what the job was given."""
    private = container.root / "tmp"
    private.mkdir(parents=True, exist_ok=True)
    base = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    base["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', os.defpath)}"
    return {
        **base,
        "HOME": str(private),
        "TMPDIR": str(private),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(container.threads),
        # The service's own endpoint and keys that are worth nothing anywhere else.
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": machine.url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **{name: mapped(value, container.opt_ml) for name, value in container.environment.items()},
    }


def command(container: Container) -> list[str]:
    """The command with this interpreter in place of the image's python3, and /opt/ml mapped."""
    first, *rest = [mapped(part, container.opt_ml) for part in container.command]
    return [sys.executable if first in _PYTHON else first, *rest]


def run(
    machine: Machine,
    task: Task,
    containers: Sequence[Container],
    max_runtime: float | None,
    watch: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the containers of one job side by side until all have ended or one has failed.

    Args:
        machine: where it runs.
        task: asked to stop, it sends SIGTERM to the process groups, and SIGKILL after the grace period.
        containers: one a host.
        max_runtime: seconds before it is stopped all the same; None for no limit.
        watch: called several times a second while they run, and once after they ended.

    Raises:
        OSError: a command that can not be started.
    """
    running: list[tuple[Container, subprocess.Popen[bytes]]] = []
    indices = [logs.Index(container.log) for container in containers]
    deadline = time.monotonic() + max_runtime if max_runtime else float("inf")
    codes: list[int | None] = []
    ended: Literal["exited", "stopped", "timed out"] = "exited"
    try:
        for container in containers:
            running.append((container, start(machine, container)))
        while True:
            codes = [process.poll() for _, process in running]
            for index in indices:
                index.note()
            watch()
            if all(code is not None for code in codes) or any(codes):
                break
            if task.stopping or time.monotonic() > deadline:
                ended = "stopped" if task.stopping else "timed out"
                break
            _pause(next(process for (_, process), code in zip(running, codes, strict=True) if code is None))
    finally:
        terminate([process for _, process in running], machine.grace)
        for container, _ in running:
            machine.store.delete("process", container.name)
        for index in indices:
            index.note()
    watch()
    # Of several hosts, the one that failed first, not those that were ended because of it.
    codes = codes if any(codes) else [process.returncode for _, process in running]
    which = next((place for place, code in enumerate(codes) if code), 0)
    return Outcome(codes[which] or 0, ended, which)


def _pause(process: subprocess.Popen[bytes]) -> None:
    """A tick, or less if the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TICK)


def start(machine: Machine, container: Container) -> subprocess.Popen[bytes]:
    """Start one container and note its process, so that a service that comes after a crash can clear it away."""
    container.opt_ml.mkdir(parents=True, exist_ok=True)
    # Readable as well: the training toolkit quotes the log's end when a script fails.
    handle = os.open(container.log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        process = subprocess.Popen(
            command(container),
            cwd=container.root,
            env=environment(machine, container),
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )
    finally:
        os.close(handle)
    machine.store.delete("process", container.name)
    machine.store.create(
        "process", container.name, {"name": container.name, "pid": process.pid, "born": born(process.pid)}
    )
    return process


def terminate(processes: Sequence[subprocess.Popen[bytes]], grace: Callable[[], float]) -> None:
    """SIGTERM to the groups of those that run, SIGKILL to all that is left after `grace()` seconds.

    The grace is asked for again and again: it gets shorter when the service itself is stopped meanwhile.
    """
    for process in processes:
        if process.poll() is None:
            _signal(process.pid, signal.SIGTERM)
    begun = time.monotonic()
    while any(process.poll() is None for process in processes) and time.monotonic() - begun < grace():
        time.sleep(0.02)
    for process in processes:
        _signal(process.pid, signal.SIGKILL)  # also what a process that has ended left behind
        process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; on macOS: only zombies left
        os.killpg(group, number)


def born(pid: int) -> float | None:
    """When a process started (seconds since 1970); with its id that names it for good. None if it is gone."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def clear(store: Store) -> int:
    """End the processes a service that died has left running; returns how many there were."""
    count = 0
    for document in store.list("process"):
        now = born(document["pid"])
        if now is not None and document["born"] is not None and abs(now - document["born"]) < 1:
            _signal(document["pid"], signal.SIGKILL)
            count += 1
        store.delete("process", document["name"])
    return count
