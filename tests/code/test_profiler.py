import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import profiler

CODE = Path(__file__).resolve().parents[2] / "code"

PARENT = """
import pathlib, sys, time
import profiler
with profiler.sampling(pathlib.Path(sys.argv[1]), 100):
    print("sampling", flush=True)
    time.sleep(60)
"""


def events(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.rglob("*.json"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def soon(condition: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_job_leaves_events_in_sagemakers_form(digits_pipeline: Any) -> None:
    folder = digits_pipeline.root / "train" / "data" / "profiler"
    found = events(folder)
    assert all(list(event) == ["Type", "Name", "Dimension", "Value", "NodeId", "Timestamp"] for event in found)
    assert {event["NodeId"] for event in found} == {"algo-1"}
    assert {event["Type"] for event in found} >= {"cpu", "memory"}
    shares = [event["Value"] for event in found if event["Dimension"] == "CPUUtilization"]
    assert all(0 <= share <= 100 for share in shares)
    assert max(shares) > 0
    (memory, *_) = [event["Value"] for event in found if event["Name"] == "MemoryUsedPercent"]
    assert 0 < memory < 100
    moments = sorted({event["Timestamp"] for event in found})
    assert len(moments) > 5
    for path in folder.rglob("*.json"):
        name = path.relative_to(folder).as_posix()
        match = re.fullmatch(r"system/incremental/(\d{10})/(\d+)\.algo-1\.json", name)
        assert match, name
        minute = int(match[2])
        assert minute % 60 == 0
        assert match[1] == time.strftime("%Y%m%d%H", time.gmtime(minute))
        assert all(
            minute <= event["Timestamp"] < minute + 60 for event in map(json.loads, path.read_text().splitlines())
        )


def test_sampling_ends_with_the_block(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with profiler.sampling(tmp_path, 100):
        (child,) = [each for each in psutil.Process().children() if each.pid not in before]
        assert soon(lambda: bool(events(tmp_path)))
    assert not child.is_running()


def test_sampling_ends_when_the_block_fails(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(ZeroDivisionError), profiler.sampling(tmp_path, 100):
        raise ZeroDivisionError
    assert {child.pid for child in psutil.Process().children()} == before


@pytest.mark.parametrize("started", [True, False])
def test_the_sampler_does_not_outlive_a_killed_parent(tmp_path: Path, started: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CODE)},
        stdout=subprocess.PIPE,
    )
    try:
        # Killed while the sampler is still starting, or once it samples.
        assert soon(lambda: bool(list(tmp_path.rglob("*.json")) if started else psutil.Process(parent.pid).children()))
        (child,) = psutil.Process(parent.pid).children()
        assert child.is_running()
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
    assert soon(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_nothing_is_sampled_where_nobody_asked_or_psutil_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = psutil.Process().children()
    with profiler.sampling(None, 100):
        assert psutil.Process().children() == before
    monkeypatch.setitem(sys.modules, "psutil", None)
    with profiler.sampling(tmp_path, 100):
        pass
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out.count("WARNING: psutil is not installed") == 1
