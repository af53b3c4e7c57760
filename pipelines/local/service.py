"""Start and stop the service: what the command line and the tests call. Standard library only, so it is quick.

The process holds a lock on `service.lock` in its state directory as long as it lives, and its address stands in
`service.json`. That lock, not a process id, is what says whether it runs: an id may belong to someone else by now.
"""

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADDRESS = "service.json"
LOCK = "service.lock"
LOG = "service.log"
HEALTH = "/-/health"
_START = 60.0  # seconds it may take to answer; a second is usual, a loaded machine is not
_STOP = 60.0  # seconds it may take to end before it is killed; it ends its jobs after 5
_ROOT = Path(__file__).parents[2]
_children: list[subprocess.Popen[bytes]] = []
"""Those we started: kept, so that they are waited for when they end."""


class ServiceFailed(Exception):
    """The service did not come up; the message has the end of its log."""


def ensure_running(state_dir: Path, options: Sequence[str] = ()) -> str:
    """The address of the service on this state directory, which is started if it does not run.

    Args:
        state_dir: made if need be, for its owner only.
        options: further options of `python -m pipelines.local`, such as `["--slots", "4"]`; they have no effect on a
            service that runs already.

    Raises:
        ServiceFailed: it did not come up.
    """
    state_dir = state_dir.resolve()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(state_dir / "start.lock"):  # two callers start one service
        url = running(state_dir)
        return url or _start(state_dir, options)


def running(state_dir: Path) -> str | None:
    """The address of the service, or None if it does not run."""
    address = _read(state_dir)
    if address is None or not is_locked(state_dir):
        return None
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # busy, perhaps
        health = _health(address["port"])
        if health and health.get("pid") == address["pid"]:
            return str(address["url"])
        if not is_locked(state_dir):
            return None
        time.sleep(0.05)
    return None


def stop(state_dir: Path) -> bool:
    """Stop the service, its jobs and its endpoints' servers; returns whether it was running."""
    state_dir = state_dir.resolve()
    address = _read(state_dir)
    if address is None:
        return False
    if not is_locked(state_dir):  # it died: what it was running may live on
        _clear(state_dir)
        return False
    for number, patience in ((signal.SIGTERM, _STOP), (signal.SIGKILL, 10.0)):
        try:
            os.kill(address["pid"], number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while is_locked(state_dir) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not is_locked(state_dir):
            break
    if (state_dir / ADDRESS).exists():  # it did not get to clear up
        _clear(state_dir)
    for child in list(_children):
        if child.pid == address["pid"]:
            child.wait()
            _children.remove(child)
    return True


def is_locked(state_dir: Path) -> bool:
    """Whether a service holds this state directory."""
    try:
        handle = os.open(state_dir / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _clear(state_dir: Path) -> None:
    """End what a service that was killed has left running."""
    from pipelines.local import container, store

    database = state_dir / "state.db"
    if database.exists():
        records = store.Store(database)
        container.clear(records)
        records.close()
    (state_dir / ADDRESS).unlink(missing_ok=True)


def _start(state_dir: Path, options: Sequence[str]) -> str:
    log = state_dir / LOG
    # The package may be a checkout that was never installed.
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", "--state", str(state_dir), *options],
            env={**os.environ, "PYTHONPATH": path},
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _children.append(process)
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        address = _read(state_dir)
        if address and address["pid"] == process.pid and _health(address["port"]):
            return str(address["url"])
        if process.poll() is not None:
            _children.remove(process)
            raise ServiceFailed(f"The local service ended with {process.returncode}. {_tail(log)}")
        time.sleep(0.02)
    process.kill()
    process.wait()
    _children.remove(process)
    raise ServiceFailed(f"The local service did not answer within {_START:.0f} s. {_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return f"The end of {log}:\n" + "\n".join(lines)


def _read(state_dir: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((state_dir / ADDRESS).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content


def _health(port: int) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", HEALTH)
        response = connection.getresponse()
        content: dict[str, Any] = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return content if response.status == 200 else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
