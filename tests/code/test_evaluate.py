"""The figures the gate looks at, held against figures computed another way; and archives that are not Train's."""

import gzip
import io
import json
import math
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

import contract
import evaluate
from failures import UserError

Run = Callable[..., Any]
HEAVY = ("model.pt", "model.onnx")


@pytest.fixture(scope="module")
def report(digits_pipeline: Any) -> dict[str, Any]:
    return json.loads((digits_pipeline.root / "evaluation" / contract.EVALUATION_FILE).read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def predictions(digits_pipeline: Any) -> list[dict[str, Any]]:
    path = digits_pipeline.root / "evaluation" / contract.PREDICTIONS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def at(report: dict[str, Any], path: str) -> float:
    """What the gate's JsonGet finds."""
    value: Any = report
    for key in path.split("."):
        value = value[key]
    assert isinstance(value, float)
    return value


class TestFigures:
    def test_every_photo_of_the_test_side_is_measured_once(
        self, digits_pipeline: Any, predictions: list[dict[str, Any]]
    ) -> None:
        names = []
        for path in sorted((digits_pipeline.root / "test").glob("*.tar")):
            with tarfile.open(path) as tar:
                names += tar.getnames()
        assert [each["photo"] for each in predictions] == names
        assert len(names) > 150

    def test_they_are_those_of_the_predictions(
        self, report: dict[str, Any], predictions: list[dict[str, Any]]
    ) -> None:  # fmt: skip
        truth = [each["photo"].split("/")[0] for each in predictions]
        right = sum(each["label"] == label for each, label in zip(predictions, truth, strict=True))
        assert at(report, contract.ACCURACY_PATH) == pytest.approx(right / len(truth), abs=1e-12)
        losses = [each["loss"] for each in predictions]
        assert at(report, contract.TEST_LOSS_PATH) == pytest.approx(sum(losses) / len(losses), rel=1e-9)
        for each, label in zip(predictions, truth, strict=True):
            assert each["label"] == max(each["probabilities"], key=each["probabilities"].__getitem__)
            if label in each["probabilities"]:
                assert each["loss"] == pytest.approx(-math.log(each["probabilities"][label]), abs=1e-9)

    def test_they_are_those_of_the_trials_head_on_the_features_of_the_test_side(
        self, digits_pipeline: Any, report: dict[str, Any]
    ) -> None:
        """The archive's network, ONNX Runtime and the photos' bytes against NumPy on what Embed wrote."""
        (features,), (labels,) = (
            [np.load(path) for path in (digits_pipeline.root / "features").rglob(f"test/{name}.npy")]
            for name in ("features", "labels")
        )
        saved = torch.load(digits_pipeline.root / "trial" / "head.pt")
        head = {name: value.double().numpy() for name, value in saved.items()}
        features = features.reshape(len(labels), -1, head["mean"].size)[:, 0]
        logits = (features - head["mean"]) * head["inverse_std"] @ head["weight"].T + head["bias"]
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
        assert at(report, contract.TEST_LOSS_PATH) == pytest.approx(losses.mean(), abs=1e-3)
        assert at(report, contract.ACCURACY_PATH) == pytest.approx((logits.argmax(1) == labels).mean(), abs=0.006)

    def test_the_log_gives_them_to_sagemakers_expressions(self, digits_pipeline: Any, report: dict[str, Any]) -> None:
        for metric, path in (
            (contract.METRIC_TEST_LOSS, contract.TEST_LOSS_PATH),
            (contract.METRIC_ACCURACY, contract.ACCURACY_PATH),
        ):
            (value,) = re.findall(contract.METRIC_REGEX[metric], digits_pipeline.jobs["evaluate"].log)
            assert float(value) == pytest.approx(at(report, path), abs=1e-6)

    def test_the_report_says_what_it_is_of(self, report: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
        assert report["classes"] == [str(digit) for digit in range(10)]
        assert report["photos"] == len(predictions)
        assert report["model"]["backbone"] == "resnet18"
        assert report["model"]["weights"] == {"kind": "random", "name": "random.json", "seed": 0}
        assert report["model"]["hyperparameters"]["lr"] == 0.01
        assert report["engine"] == "onnxruntime"

    def test_confusion_matrix_and_classes(self, report: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
        matrix = report["multiclass_classification_metrics"]["confusion_matrix"]
        counts: dict[tuple[str, str], int] = {}
        for each in predictions:
            pair = each["photo"].split("/")[0], each["label"]
            counts[pair] = counts.get(pair, 0) + 1
        given = {(truth, claimed): count for truth, row in matrix.items() for claimed, count in row.items() if count}
        assert given == counts
        for name, figures in report["per_class"].items():
            assert figures["photos"] == sum(matrix[name].values())
            assert figures["accuracy"] == pytest.approx(matrix[name][name] / figures["photos"])
            claimed = sum(row[name] for row in matrix.values())
            assert figures["precision"] == pytest.approx(matrix[name][name] / claimed)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 50)), min_size=1, max_size=40))
    def test_they_are_scikit_learns(self, photos: list[tuple[int, int, float]]) -> None:
        truth, predicted, losses = ([photo[part] for photo in photos] for part in range(3))
        metrics = evaluate.measure(losses, truth, predicted, ["a", "b", "c", "d"])["multiclass_classification_metrics"]
        expected = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
        ours = [metrics[f"weighted_{name}"]["value"] for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx(expected[:3])
        assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
        assert metrics["test_loss"]["value"] == pytest.approx(np.mean(losses))


@pytest.fixture(scope="module")
def contents(model_dir: Path) -> dict[str, bytes]:
    """The archive's files, but without the weight of the two large ones: these cases end before those are read."""
    files = [path for path in model_dir.rglob("*") if path.is_file()]
    return {
        path.relative_to(model_dir).as_posix(): b"heavy" if path.name in HEAVY else path.read_bytes() for path in files
    }


def packed(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), 6, mtime=0)


class TestArchives:
    @pytest.fixture
    def go(self, call: Run, digits_pipeline: Any, tmp_path: Path) -> Run:
        def go(archive: bytes | None) -> Any:
            (tmp_path / "archive").mkdir()
            if archive is not None:
                (tmp_path / "archive" / contract.MODEL_ARCHIVE).write_bytes(archive)
            paths = ("--model", tmp_path / "archive", "--test", digits_pipeline.root / "test")
            job = call("evaluate.py", *paths, "--output", tmp_path / "evaluation")
            assert not (tmp_path / "evaluation").exists()
            return job

        return go

    def test_none(self, go: Run, fails: Run) -> None:
        fails(go(None), "holds no model.tar.gz: expected what Train left")

    @pytest.mark.parametrize(
        "data",
        [b"", b"text", gzip.compress(b"text", mtime=0), gzip.compress(bytes(10240), mtime=0)],
        ids=["nothing", "text", "zipped text", "an empty tar"],
    )
    def test_something_else(self, go: Run, fails: Run, data: bytes) -> None:
        fails(go(data), "is not an archive that Train made")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
    def test_cut_short(self, go: Run, fails: Run, contents: dict[str, bytes], share: float) -> None:
        data = packed(contents)
        fails(go(data[: int(len(data) * share)]), "is not an archive that Train made")

    @pytest.mark.parametrize(
        "name",
        [
            "model.json", "model.pt", "model.onnx", "code/inference.py", "code/photos.py", "code/contract.py",
            "code/networks.py", "code/failures.py",
        ],
    )  # fmt: skip
    def test_incomplete(self, go: Run, fails: Run, contents: dict[str, bytes], name: str) -> None:
        assert name in contents
        job = go(packed({other: data for other, data in contents.items() if other != name}))
        fails(job, "is not an archive that Train made", name)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"classes": ["0", "1"]}'])
    def test_a_description_that_is_none(self, go: Run, fails: Run, contents: dict[str, bytes], text: str) -> None:
        fails(go(packed({**contents, "model.json": text.encode()})), "is not an archive that Train made")

    def test_a_network_that_is_none(
        self, run: Run, fails: Run, contents: dict[str, bytes], digits_pipeline: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive" / contract.MODEL_ARCHIVE).write_bytes(packed(contents))
        paths = ("--model", tmp_path / "archive", "--test", digits_pipeline.root / "test")
        job = run(
            "evaluate.py", *paths, "--output", tmp_path / "evaluation"
        )  # a process: it imports the archive's code
        fails(job, "the model in ", "cannot be loaded", "run Train again")

    def test_other_classes(self, go: Run, fails: Run, contents: dict[str, bytes]) -> None:
        meta = json.loads(contents["model.json"])
        meta["classes"] = meta["classes"][::-1]
        fails(go(packed({**contents, "model.json": json.dumps(meta).encode()})), "other classes")

    @pytest.mark.parametrize("name", ["../evil.txt", "code/../../evil.txt"])
    def test_a_member_that_climbs_out(
        self, go: Run, fails: Run, contents: dict[str, bytes], name: str, tmp_path: Path
    ) -> None:
        fails(go(packed({name: b"evil", **contents})), "is not an archive that Train made", "outside the destination")
        assert not list(tmp_path.parent.rglob("evil.txt"))

    def test_any_damaged_byte_is_found_or_does_no_harm(
        self, contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        whole = packed(contents)

        @settings(max_examples=60, deadline=None)
        @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
        def damage(place: int, change: int) -> None:
            folder = tmp_path_factory.mktemp("damaged")
            data = bytearray(whole)
            data[place] ^= change
            (folder / contract.MODEL_ARCHIVE).write_bytes(data)
            try:
                evaluate.unpack(folder, folder / "unpacked")
            except UserError:
                return
            assert {name: (folder / "unpacked" / name).read_bytes() for name in contents} == contents

        damage()
