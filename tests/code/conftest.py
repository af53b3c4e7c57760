"""The scripts as SageMaker runs them: real processes, with their paths in a folder of the test's own."""

import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CODE = Path(__file__).resolve().parents[2] / "code"


@dataclass
class Job:
    """What a script left: its exit code, its log, and the reason it gave."""

    status: int
    log: str
    error: str
    reason: str

    @property
    def lines(self) -> list[str]:
        return self.log.splitlines()


Run = Callable[..., Job]


def run_script(output: Path, script: str, *arguments: object, env: dict[str, str] | None = None) -> Job:
    """Run `code/SCRIPT` with SM_OUTPUT_DIR at `output`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    process = subprocess.run(
        [sys.executable, str(CODE / script), *map(str, arguments)],
        env={**clean, "SM_OUTPUT_DIR": str(output), "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    reason = next((path.read_text() for path in map(output.joinpath, ("failure", "message")) if path.exists()), "")
    return Job(process.returncode, process.stdout, process.stderr, reason)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda script, *arguments, env=None: run_script(tmp_path / "output", script, *arguments, env=env)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """As `run`, but in this process: importing PyTorch takes longer than most of what is asked of it."""

    def call(script: str, *arguments: object, env: dict[str, str] | None = None) -> Job:
        output = tmp_path / "output"
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("SM_")]:
                patch.delenv(name)
            for name, value in {"SM_OUTPUT_DIR": str(output), **(env or {})}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            with pytest.raises(SystemExit) as left:
                runpy.run_path(str(CODE / script), run_name="__main__")
        reason = next((path.read_text() for path in map(output.joinpath, ("failure", "message")) if path.exists()), "")
        log, error = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Job(left.value.code, log, error, reason)

    return call


@pytest.fixture(scope="session")
def fails() -> Callable[..., None]:
    """The job failed by its user's mistake: one line, the same for the log and the service, with these parts."""

    def fails(job: Job, *parts: str) -> None:
        assert job.status == 1
        assert job.error.startswith("error: "), job.error
        assert job.error.count("\n") == 1
        assert job.reason == job.error
        for part in parts:
            assert part in job.error

    return fails


@dataclass
class Pipeline:
    """All of it, in one folder: split, features, trial, model, archive, evaluation; and the jobs' logs."""

    root: Path
    jobs: dict[str, Job]

    def channels(self) -> dict[str, str]:
        places = {"features": "features", "train": "train", "valid": "valid", "weights": "weights"}
        return {f"SM_CHANNEL_{name.upper()}": str(self.root / place) for name, place in places.items()}

    def step(self, name: str, script: str, *arguments: object, env: dict[str, str] | None = None) -> Job:
        job = run_script(self.root / f"{name}-output", script, *arguments, env=env)
        assert job.status == 0, job.error
        self.jobs[name] = job
        return job


def split_and_embed(root: Path, dataset: Path, image_size: int, *embed: object) -> Pipeline:
    """The first two steps, from random weights."""
    pipeline = Pipeline(root, {})
    (root / "weights").mkdir(parents=True)
    (root / "weights" / "random.json").write_text(json.dumps({"init": "random", "seed": 0}))
    sides = [option for side in ("train", "valid", "test") for option in (f"--{side}", root / side)]
    pipeline.step("split", "split.py", "--input", dataset, *sides, "--report", root / "report")
    size = ("--image-size", image_size, "--resize-size", image_size)
    paths = ("--report", root / "report", "--weights", root / "weights", "--output", root / "features")
    pipeline.step("embed", "embed.py", *sides, *paths, *size, *embed)
    return pipeline


def train(pipeline: Pipeline, *arguments: object, name: str = "train") -> Path:
    """Train, and pack the model as SageMaker does; the folder with model.tar.gz."""
    root = pipeline.root / name
    env = {
        **pipeline.channels(),
        "SM_MODEL_DIR": str(root / "model"),
        "SM_OUTPUT_DATA_DIR": str(root / "data"),
        "SM_INPUT_CONFIG_DIR": str(root / "config"),
    }
    pipeline.step(name, "train.py", *arguments, env=env)
    (root / "archive").mkdir()
    with tarfile.open(root / "archive" / "model.tar.gz", "w:gz") as tar:
        tar.add(root / "model", ".")
    return root / "archive"


@pytest.fixture(scope="session")
def digits_pipeline(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The demo: every digit, a random frozen resnet18, a trial, Train with its hyperparameters, Evaluate."""
    pipeline = split_and_embed(tmp_path_factory.mktemp("demo"), digits, 32)
    recipe = ("--lr", "0.01", "--batch-size", '"\\"32\\""', "--epochs", '"15"', "--seed", "3")
    trial = {**pipeline.channels(), "SM_MODEL_DIR": str(pipeline.root / "trial")}
    pipeline.step("trial", "hpo.py", *recipe, "--_tuning_objective_metric", "average validation loss", env=trial)
    archive = train(pipeline, *recipe, "--debugger-save-interval", 20, "--profiler-interval-ms", 100)
    evaluation = ("--test", pipeline.root / "test", "--output", pipeline.root / "evaluation")
    pipeline.step("evaluate", "evaluate.py", "--model", archive, *evaluation)
    return pipeline


@pytest.fixture(scope="session")
def model_dir(digits_pipeline: Pipeline) -> Path:
    """The unpacked archive."""
    return digits_pipeline.root / "train" / "model"


def photo(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG", **options: object) -> bytes:
    """A photo's bytes; another seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., bytes]:
    return photo


@pytest.fixture(scope="session")
def pack() -> Callable[..., Path]:
    return train


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Pipeline]:
    return split_and_embed
