"""Train as a job, and the archive it leaves."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import archive
import fingerprint
import networks

Run = Callable[..., Any]
CODE = Path(__file__).resolve().parents[2] / "code"
QUICK = ("--epochs", "1", "--debugger", "off")

SERVE = """
import json, sys
folder, photo, engine = sys.argv[1:]
sys.path.insert(0, folder + "/code")
if engine == "torch":
    sys.modules["onnxruntime"] = None
import inference
model = inference.model_fn(folder)
with open(photo, "rb") as file:
    prediction = inference.predict_fn(inference.input_fn(file.read(), "image/png"), model)
own = sorted(str(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None))
answer = json.loads(inference.output_fn(prediction, None)[0])
print(json.dumps({"engine": model.engine, "answer": answer, "files": own}))
"""


class TestArchive:
    def test_it_holds_what_serving_needs(self, model_dir: Path) -> None:
        names = {path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*") if path.is_file()}
        assert names >= {
            "model.pt", "model.onnx", "model.json", "config.yaml", "code/inference.py", "code/requirements.txt",
            "code/serve_app.py",
        }  # fmt: skip
        assert not any("__pycache__" in name for name in names)

    def test_its_code_imports_nothing_of_ours_that_is_not_in_it(self, model_dir: Path) -> None:
        ours = {path.stem for path in CODE.glob("*.py")}
        packed = {path.stem for path in (model_dir / "code").glob("*.py")}
        for path in (model_dir / "code").glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert ours & set(names) <= packed, path.name

    @pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
    def test_it_answers_with_nothing_else_of_ours_on_the_path(
        self, model_dir: Path, digits: Path, tmp_path: Path, engine: str
    ) -> None:
        folder = shutil.copytree(model_dir, tmp_path / "model")
        photo = digits / "4" / "0004.png"
        process = subprocess.run(
            [sys.executable, "-I", "-c", SERVE, str(folder), str(photo), engine],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        served = json.loads(process.stdout.splitlines()[-1])
        assert served["engine"] == engine
        assert served["answer"]["predictions"][0]["label"] == "4"
        assert str(folder / "code" / "inference.py") in served["files"]
        assert not [name for name in served["files"] if Path(name).is_relative_to(CODE)]

    def test_the_description(self, digits_pipeline: Any, model_dir: Path) -> None:
        meta = json.loads((model_dir / "model.json").read_text())
        assert meta["backbone"] == "resnet18"
        assert meta["weights"] == {"kind": "random", "name": "random.json", "seed": 0}
        assert meta["classes"] == [str(digit) for digit in range(10)]
        assert (meta["preprocessing"]["image_size"], meta["preprocessing"]["resize_size"]) == (32, 32)
        given = {"lr": 0.01, "batch-size": 32, "epochs": 15, "seed": 3, "trainable": "head"}
        assert meta["hyperparameters"].items() >= given.items()
        report = json.loads((digits_pipeline.root / "report" / "split.json").read_text())
        assert meta["data"] == report["fingerprint"]
        assert meta["code"] == fingerprint.of_folder(Path(fingerprint.__file__).parent)
        assert meta["versions"].items() >= {name: version(name) for name in ("torch", "numpy", "pillow")}.items()
        assert meta["validation"]["accuracy"] > 0.95

    def test_a_graph_that_gives_other_answers_is_not_packed(self, tmp_path: Path) -> None:
        class Fickle(nn.Module):
            """The exporter traces a network for one size of batch, and this one minds the size."""

            def forward(self, photos: Tensor) -> Tensor:
                means = photos.mean((2, 3))
                return means if len(photos) == 2 else means * 5

        network = networks.Classifier(Fickle(), nn.Linear(3, 4))
        batch = np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype(np.float32)
        with pytest.raises(RuntimeError, match="the ONNX graph's probabilities differ from PyTorch's by"):
            archive.export(network, {}, batch, tmp_path)
        assert not (tmp_path / "model.onnx").exists()


class TestJob:
    @pytest.fixture
    def go(self, call: Run, digits_pipeline: Any, tmp_path: Path) -> Run:
        """Train in this process; a channel may be another folder."""

        def go(*arguments: object, env: dict[str, str] | None = None, **channels: Path) -> Any:
            places = {f"SM_CHANNEL_{name.upper()}": str(path) for name, path in channels.items()}
            own = {"SM_MODEL_DIR": str(tmp_path / "model"), "SM_OUTPUT_DATA_DIR": str(tmp_path / "data"),
                   "SM_INPUT_CONFIG_DIR": str(tmp_path / "config")}  # fmt: skip
            return call(
                "train.py", *QUICK, *arguments, env={**digits_pipeline.channels(), **own, **places, **(env or {})}
            )

        return go

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("--trainable", "some"), "trainable = some: expected one of head, all"),
            (("--debugger", "on"), "debugger = on: expected one of job, managed, off"),
            (("--lr", '"\\"-1\\""'), "lr = "),
            (("--batch-size", "many"), "batch-size = many: expected a whole number"),
            (("--objective", "loss"), "unknown option --objective"),
        ],
    )
    def test_wrong_hyperparameters(self, go: Run, fails: Run, arguments: tuple[str, str], reason: str) -> None:
        fails(go(*arguments), reason)

    def test_a_mistake_in_a_process_of_its_own(self, run: Run, fails: Run, tmp_path: Path) -> None:
        fails(run("train.py", "--lr", "-1"), "lr = -1: expected a finite number above 0")
        assert (tmp_path / "output" / "failure").read_text().startswith("error: ")

    def test_features_of_other_weights(self, go: Run, fails: Run, tmp_path: Path) -> None:
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "random.json").write_text('{"init": "random", "seed": 1}')
        fails(go(weights=tmp_path / "weights"), "'seed': 1", "the features were made with", "run Embed again")
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize("channel", ["features", "valid", "weights"])
    def test_an_empty_channel(self, go: Run, fails: Run, tmp_path: Path, channel: str) -> None:
        (tmp_path / "empty").mkdir()
        fails(go(**{channel: tmp_path / "empty"}), str(tmp_path / "empty"))

    def test_of_several_hosts_the_first_trains_the_head(self, go: Run, tmp_path: Path) -> None:
        hosts = {"SM_HOSTS": '["algo-2", "algo-1"]'}
        idle = go(env={**hosts, "SM_CURRENT_HOST": "algo-2"})
        assert idle.status == 0
        assert "nothing to do for algo-2" in idle.log
        assert not (tmp_path / "model").exists()
        busy = go(env={**hosts, "SM_CURRENT_HOST": "algo-1"})
        assert busy.status == 0, busy.error
        assert torch.load(tmp_path / "model" / "model.pt")["head.weight"].shape == (10, 512)
        assert not (tmp_path / "data").exists()  # without the debugger there is nothing to leave
        assert "WARNING: smdebug" not in busy.log
