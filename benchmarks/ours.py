"""The scripts of code/ as jobs: each a process of its own, with the paths SageMaker would give it."""

import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure

SIDES = ("train", "valid", "test")


@dataclass(frozen=True)
class Job:
    """A script of code/ with what its cost depends on; `views` and `precision` where they do."""

    script: str
    views: int = 0
    precision: str = ""
    epochs: int = 0

    def __str__(self) -> str:
        views = f" K={self.views}" if self.script in ("embed.py", "hpo.py", "train.py") else ""
        return f"{self.script}{views} {self.precision}{f'{self.epochs} epochs' if self.epochs else ''}".strip()


@dataclass
class Ours:
    """The scripts on one dataset, and what they cost."""

    code: Path
    data: Path
    root: Path
    engine: str
    image_size: int
    backbone: str
    threads: int
    weights: Path
    accepted: dict[str, set[str]]
    """Which of the newer options each script knows."""
    seconds: dict[Job, list[float]] = field(default_factory=lambda: defaultdict(list))
    counters: dict[Job, dict[str, int]] = field(default_factory=dict)

    def split(self) -> None:
        """Shards of the three sides."""
        paths = [option for side in SIDES for option in (f"--{side}", self.root / side)]
        self._run(Job("split.py"), "--input", self.data, *paths, "--report", self.root / "report")

    def embed(self, views: int, precision: str) -> None:
        """Features of train and valid; the first precision's are what the heads learn from."""
        folder = self.features(views, precision)
        options: list[object] = ["--train", self.root / "train", "--valid", self.root / "valid"]
        options += ["--weights", self.weights, "--output", folder, "--backbone", self.backbone]
        options += ["--image-size", self.image_size, "--resize-size", self.image_size * 256 // 224]
        known = self.accepted["embed.py"]
        options += ["--report", self.root / "report"] if "--report" in known else []
        options += ["--augmented-views", views] if "--augmented-views" in known else []
        options += ["--precision", precision, "--engine", self.engine] if "--precision" in known else []
        job = Job("embed.py", views, precision)
        self._run(job, *options)
        meta = json.loads(next(folder.rglob("features.json")).read_text())
        self.counters[job] = meta.get("counters", {})

    def trial(self, views: int, epochs: int, lr: float, batch_size: int) -> None:
        """A trial of the tuner."""
        self._head(Job("hpo.py", views, epochs=epochs), lr, batch_size)

    def train(self, views: int, epochs: int) -> None:
        """The final training; SageMaker packs the model, which costs nobody's job anything."""
        self._head(Job("train.py", views, epochs=epochs), lr=0.001, batch_size=32)

    def evaluate(self, model: Job) -> None:
        """The model that a job trained on the test photos; the cost depends on neither its views nor its epochs."""
        archive = self.root / "archive"
        archive.mkdir()
        with tarfile.open(archive / "model.tar.gz", "w:gz") as tar:
            tar.add(self._model(model), ".")
        output = self.root / "evaluation"
        job = Job("evaluate.py")
        self._run(job, "--model", archive, "--test", self.root / "test", "--output", output)
        self.counters[job] = {"forwards": json.loads((output / "evaluation.json").read_text())["photos"]}

    def _head(self, job: Job, lr: float, batch_size: int) -> None:
        channels = {"features": self.features(job.views, "fp32"), "weights": self.weights}
        channels |= {side: self.root / side for side in ("train", "valid")}
        env = {f"SM_CHANNEL_{name.upper()}": str(path) for name, path in channels.items()}
        env |= {"SM_MODEL_DIR": str(self._model(job)), "SM_OUTPUT_DATA_DIR": str(self._model(job)) + "-data"}
        env |= {"SM_INPUT_CONFIG_DIR": str(self.root / "config")}
        values: list[object] = ["--lr", lr, "--batch-size", batch_size, "--epochs", job.epochs]
        values += ["--views", job.views] if "--views" in self.accepted["hpo.py"] else []
        self._run(job, *values, env=env)

    def features(self, views: int, precision: str) -> Path:
        """Where embed.py writes to."""
        return self.root / f"features-k{views}-{precision}"

    def _model(self, job: Job) -> Path:
        return self.root / f"model-{job.script[:-3]}-k{job.views}-{job.epochs}"

    def _run(self, job: Job, *arguments: object, env: dict[str, str] | None = None) -> None:
        environment = {"SM_OUTPUT_DIR": str(self.root / "output"), **(env or {})}
        script = str(self.code / job.script)
        spent, _ = measure.run([script, *map(str, arguments)], self.threads, environment)
        self.seconds[job].append(spent)


def knows(code: Path, script: str) -> set[str]:
    """Which of the newer options a script has."""
    _, text = measure.run([str(code / script), "--help"])
    return {"--report", "--augmented-views", "--precision", "--views"} & set(text.replace(",", " ").split())


def tiny_features(code: Path, folder: Path) -> tuple[Ours, Path]:
    """Features as embed.py writes them, of a few noisy pictures in two classes: the scripts that made them, and where.

    Where the features' content does not matter, only that they are what the scripts expect.
    """
    chance = np.random.default_rng(0)
    for side in SIDES:
        for label in ("a", "b"):
            path = folder / "photos" / side / label
            path.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(chance.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / f"{number}.png")
    (folder / "weights").mkdir()
    (folder / "weights" / "random.json").write_text(json.dumps({"init": "random", "seed": 0}))
    accepted = {"embed.py": knows(code, "embed.py"), "hpo.py": set[str]()}
    made = Ours(code, folder / "photos", folder / "run", "auto", 32, "resnet18", 1, folder / "weights", accepted)
    made.split()
    made.embed(0, "fp32")
    return made, made.features(0, "fp32")


def enlarge(features: Path, rows: dict[str, int], dim: int, classes: int) -> None:
    """Replace the features of each side in place by so many random ones: their cost is that of real ones."""
    chance = np.random.default_rng(0)
    description = next(features.rglob("features.json"))
    meta = json.loads(description.read_text())
    names = [f"class{number:03d}" for number in range(classes)]
    description.write_text(json.dumps(meta | {"classes": names, "feature_dim": dim}))
    for side, count in rows.items():
        folder = next(path for path in features.rglob(side) if path.is_dir())
        views = np.load(folder / "features.npy").shape[1:-1]
        labels = np.arange(count) % classes
        centres = np.random.default_rng(1).standard_normal((classes, dim), np.float32)
        table = chance.standard_normal((count, dim), np.float32) + 0.3 * centres[labels]
        shaped = np.broadcast_to(table.reshape(count, *(1 for _ in views), dim), (count, *views, dim))
        np.save(folder / "features.npy", np.ascontiguousarray(shaped))
        np.save(folder / "labels.npy", labels.astype(np.int64))
        photos = [f"{names[label]}/{number:06d}.jpg" for number, label in enumerate(labels)]
        (folder / "photos.json").write_text(json.dumps(photos))
