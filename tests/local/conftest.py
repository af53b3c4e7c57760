"""A running service for the tests of this folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.local import service
from tests.local.definitions import Clients


def processes(state: Path) -> list[str]:
    """The command lines of all processes that work in or on a state directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            text = " ".join(process.cmdline())
            if str(state) in text or str(state) in process.cwd():
                found.append(text)
    return found


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a service with two slots; no process may be left behind."""
    folder = tmp_path_factory.mktemp("state")
    service.ensure_running(folder, ["--slots", "2", "--stop-grace", "5"])
    yield folder
    service.stop(folder)
    assert processes(folder) == []


@pytest.fixture(scope="session")
def clients(state: Path) -> Clients:
    return Clients(service.ensure_running(state))
