"""What is paid before any work is done: imports, a trial, the command line, the local service.

    python -m benchmarks.startup [--repeats 3]

CPU seconds of a process of its own each, the bare interpreter's included; medians.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measure, ours

MODULES = ("torch", "torchvision", "onnxruntime", "boto3", "sagemaker")
SERVICE = """
import sys
from pathlib import Path
import psutil
from pipelines.local import service
state = Path(sys.argv[1])
service.ensure_running(state, ["--slots", "1", "--stop-grace", "1"])
client = psutil.Process()
times = [each.cpu_times() for each in (client, *client.children(recursive=True))]
print(sum(t.user + t.system for t in times))
service.stop(state)
"""


def service() -> float:
    """CPU seconds of the service until its first answer, and of the client that starts it."""
    with tempfile.TemporaryDirectory() as folder:
        _, printed = measure.run(["-c", SERVICE, str(Path(folder) / "state")])
    return float(printed)


def process(*arguments: str) -> float:
    """CPU seconds of Python with these arguments."""
    return measure.run(list(arguments))[0]


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Each in turn, as often as wanted."""
    with tempfile.TemporaryDirectory() as folder:
        scripts, _ = ours.tiny_features(options.code.resolve(), Path(folder))

        def trial() -> float:
            scripts.trial(0, 2, 0.01, 32)
            return scripts.seconds[ours.Job("hpo.py", epochs=2)][-1]

        what: dict[str, Callable[[], float]] = {"python": partial(process, "-c", "")}
        what |= {f"import {name}": partial(process, "-c", f"import {name}") for name in options.modules}
        what["hpo.py, 2 epochs on tiny features"] = trial
        what["run.py --help"] = partial(process, str(measure.ROOT / "pipelines" / "run.py"), "--help")
        what["local service to its first answer"] = service
        spent: dict[str, list[float]] = {name: [] for name in what}
        for _ in range(options.repeats):
            for name, function in what.items():
                spent[name].append(function())
                measure.say(f"{name}: {spent[name][-1]:.2f} s")
    return {
        "cpu_s": {name: statistics.median(values) for name, values in spent.items()},
        "machine": measure.machine(),
    }


def main() -> None:
    """Measure what the options name."""
    parser = measure.parser(__doc__)
    parser.add_argument("--code", type=Path, default=measure.CODE, help="folder with the scripts to measure")
    parser.add_argument("--repeats", type=measure.positive, default=3, help="measurements of each, in turn")
    parser.add_argument("--modules", nargs="*", default=MODULES, help="modules to import")
    options = parser.parse_args()
    result = bench(options)
    rows = [("what", "CPU s"), *((name, f"{value:.2f}") for name, value in result["cpu_s"].items())]
    measure.show(result, rows, options.json)


if __name__ == "__main__":
    main()
