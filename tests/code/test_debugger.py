"""What smdebug saves of a training, read back by smdebug, in a process of its own: protobuf wants a variable set."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import contract

Run = Callable[..., Any]
CODE = Path(__file__).resolve().parents[2] / "code"

READ = """
import json, sys
from smdebug import modes
from smdebug.trials import create_trial
trial = create_trial(sys.argv[1])
def loss(mode):
    (name,) = trial.tensor_names(collection="losses", mode=mode)
    tensor = trial.tensor(name)
    return [float(tensor.value(step, mode=mode)) for step in tensor.steps(mode=mode)]
print(json.dumps({
    "train": loss(modes.TRAIN), "eval": loss(modes.EVAL), "finished": trial.loaded_all_steps,
    "gradients": trial.tensor_names(collection="gradients"), "weights": trial.tensor_names(collection="weights"),
}))
"""

# What the container lacks, or all of smdebug: a finder in front of the others says that it is not there.
SITE = """
import sys
class Hide:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        wheel = name == "smdebug" and any(entry.endswith(".whl") for entry in sys.path)
        if name in self.names and not (wheel and {wheel}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""

FROZEN = """
import pathlib, sys, torch
import debugger
observer = debugger.create("job", 1, pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]))
import smdebug
print(smdebug.__file__)
network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
network[0].requires_grad_(False)
criterion = torch.nn.CrossEntropyLoss()
observer.watch(network, criterion)
observer.training()
for step in range(3):
    loss = criterion(network(torch.ones(5, 3)), torch.zeros(5, dtype=torch.long))
    network.zero_grad()
    loss.backward()
observer.evaluating()
with torch.no_grad():
    criterion(network(torch.ones(5, 3)), torch.zeros(5, dtype=torch.long))
observer.close()
"""


def python(code: str, *arguments: object, **env: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "OMP_NUM_THREADS": "1", **env},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def read(folder: Path) -> dict[str, Any]:
    return json.loads(python(READ, folder).splitlines()[-1])  # type: ignore[no-any-return]


def site(folder: Path, *names: str, wheel: bool) -> str:
    """A folder for PYTHONPATH where these modules are not there; smdebug unless from the wheel, if that may be."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE.format(names=names, wheel=wheel))
    return str(folder)


def losses(log: str) -> tuple[list[float], list[float]]:
    """(training, validation) loss of every epoch in the log; validation without the line for the epoch kept."""
    training = [float(value) for value in re.findall(r"training loss ([0-9.]+)", log)]
    validation = re.findall(contract.METRIC_REGEX[contract.METRIC_VALID_LOSS], log)
    return training, [float(value) for value in validation[: len(training)]]


def warnings(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("WARNING") and "RANDOM weights" not in line]


@pytest.fixture
def train(run: Run, digits_pipeline: Any, tmp_path: Path) -> Run:
    def train(*arguments: object, run: Run = run, **env: str) -> Any:
        folders = {"SM_MODEL_DIR": str(tmp_path / "model"), "SM_OUTPUT_DATA_DIR": str(tmp_path / "data"),
                   "SM_INPUT_CONFIG_DIR": str(tmp_path / "config")}  # fmt: skip
        job = run("train.py", *arguments, env={**digits_pipeline.channels(), **folders, **env})
        assert job.status == 0, job.error
        assert (tmp_path / "model" / "model.onnx").is_file()
        return job

    return train


def test_a_job_saves_the_losses_that_its_log_shows(digits_pipeline: Any) -> None:
    job = digits_pipeline.jobs["train"]
    saved = read(digits_pipeline.root / "train" / "data" / "debug")
    training, validation = losses(job.log)
    assert len(training) == 15
    assert saved["eval"] == pytest.approx(validation, abs=1e-6)
    assert len(saved["train"]) > 15  # every 20th step of 675
    assert saved["train"][0] > saved["train"][-1]
    assert saved["finished"]
    for kind, prefix in (("gradients", "gradient/"), ("weights", "")):
        (name,) = (name for name in saved[kind] if name.endswith("head.weight"))
        assert name.startswith(prefix)
    assert warnings(job.log) == []


def test_managed_saves_what_the_service_asks_for(train: Run, tmp_path: Path) -> None:
    config = json.loads((CODE / "debughookconfig.json").read_text())
    config["LocalPath"] = str(tmp_path / "tensors")
    config["HookParameters"] = {"save_interval": "1"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "debughookconfig.json").write_text(json.dumps(config))
    job = train("--debugger", "managed", "--epochs", "2", "--batch-size", "300")
    saved = read(tmp_path / "tensors")
    training, validation = losses(job.log)
    assert len(saved["train"]) == 2 * 5  # of 1427 photos, 300 a step and 227 in the last
    assert saved["eval"] == pytest.approx(validation, abs=1e-6)
    for epoch, expected in enumerate(training):
        *full, last = saved["train"][epoch * 5 : epoch * 5 + 5]
        assert (sum(full) * 300 + last * 227) / 1427 == pytest.approx(expected, abs=1e-5)
    assert warnings(job.log) == []
    assert not (tmp_path / "data" / "debug").exists()


def test_managed_without_a_service_goes_on_with_one_warning(train: Run, call: Run) -> None:
    job = train("--debugger", "managed", "--epochs", "1", run=call)  # smdebug is not asked for: in this process
    (warning,) = warnings(job.log)
    assert "the service left no" in warning


def test_without_smdebug_training_goes_on_with_one_warning(train: Run, tmp_path: Path) -> None:
    job = train("--epochs", "1", PYTHONPATH=site(tmp_path / "site", "smdebug", wheel=False))
    (warning,) = warnings(job.log)
    assert "smdebug cannot be imported" in warning
    assert "training goes on without the debugger" in warning


def test_in_the_container_smdebug_comes_from_the_wheel_and_frozen_parameters_do_no_harm(tmp_path: Path) -> None:
    hidden = site(tmp_path / "site", "smdebug", "pyinstrument", "distutils", wheel=True)
    log = python(FROZEN, tmp_path / "data", PYTHONPATH=os.pathsep.join([hidden, str(CODE)]))
    assert ".whl" in log
    saved = read(tmp_path / "data" / "debug")
    assert len(saved["train"]) == 3
    assert len(saved["eval"]) == 1
    assert sorted(saved["gradients"]) == ["gradient/Sequential_2.bias", "gradient/Sequential_2.weight"]
