"""What the benchmarks share: CPU time, jobs as processes of their own, the machine's description, the output.

CPU time rather than seconds on the clock: it does not depend on who else uses the machine's cores, or hardly.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "code"
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "numpy", "pillow")


class JobFailed(RuntimeError):
    """A process of the benchmark left with another code than 0; the message ends with what it said last."""


def cpu_seconds() -> float:
    """User and system time of this process and of those of its descendants that have ended and been waited for."""
    return own_cpu_seconds() + children_cpu_seconds()


def own_cpu_seconds() -> float:
    """The same of this process alone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def children_cpu_seconds() -> float:
    """The same of its descendants alone."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(arguments: list[str], threads: int = 1, env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run Python with `arguments`; CPU seconds of the process with its children, and what it printed.

    Not for use in parallel: the time is that of all children that end meanwhile.

    Raises:
        JobFailed: it failed.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    before = children_cpu_seconds()
    process = subprocess.run(
        [sys.executable, *arguments],
        env={**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise JobFailed(f"{' '.join(arguments)} left with {process.returncode}: {process.stderr.strip()[-2000:]}")
    return children_cpu_seconds() - before, process.stdout


def machine() -> dict[str, Any]:
    """CPU, cores, the flags that matter to matrix products, and the versions of the packages that compute."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "load": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, with the options every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=_Formatter)
    made.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    made.add_argument("--threads", type=positive, default=1, help="threads a process: waiting ones burn CPU time")
    return made


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown, and the docstring's command left on its line."""


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """For argparse: a whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def say(text: str) -> None:
    """Progress, which goes to stderr so that stdout holds the result alone."""
    print(text, file=sys.stderr, flush=True)


def show(result: dict[str, Any], table: Sequence[tuple[str, ...]], as_json: bool) -> None:
    """Print the result: one object, or a table (its first row the heading) and the machine."""
    if as_json:
        print(json.dumps(result))
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    for note in result.get("notes", []):
        print(f"* {note}")
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    print(f"{about['cpu']}, {about['cores']} cores ({' '.join(about['flags'])}), load {about['load']}; {versions}")
