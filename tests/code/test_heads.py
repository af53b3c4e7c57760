"""Heads, as a trial of the tuner and Train find them, on the digits' features."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import contract
import heads
import networks

Run = Callable[..., Any]
RECIPE = ("--lr", "0.01", "--batch-size", "32", "--epochs", "15", "--seed", "3")  # as the demo's own trial


def side(pipeline: Any, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features of the evaluation view, float32 [N, 512], and labels [N]."""
    (features,) = (np.load(path) for path in (pipeline.root / "features").rglob(f"{name}/features.npy"))
    (labels,) = (np.load(path) for path in (pipeline.root / "features").rglob(f"{name}/labels.npy"))
    return features.reshape(len(labels), -1, 512)[:, 0], labels


def figures(log: str, metric: str) -> list[float]:
    return [float(value) for value in re.findall(contract.METRIC_REGEX[metric], log)]


@pytest.fixture
def trial(call: Run, digits_pipeline: Any, tmp_path: Path) -> Run:
    """A trial in this process; the job, and the head it saved."""

    def trial(*arguments: object, features: Path | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        env = {"SM_CHANNEL_FEATURES": str(features or digits_pipeline.root / "features")}
        job = call("hpo.py", *arguments, env={**env, "SM_MODEL_DIR": str(tmp_path / "model")})
        path = tmp_path / "model" / "head.pt"
        return job, torch.load(path) if path.exists() else {}

    return trial


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestAccuracy:
    def test_it_reads_digits_as_well_as_logistic_regression(self, digits_pipeline: Any) -> None:
        features, labels = side(digits_pipeline, "train")
        mean, std = features.mean(0), features.std(0) + 1e-6
        model = LogisticRegression(C=0.1, max_iter=300).fit((features - mean) / std, labels)
        held_out, truth = side(digits_pipeline, "valid")
        accuracy = figures(digits_pipeline.jobs["trial"].log, contract.METRIC_ACCURACY)[-1]
        assert accuracy > 0.95
        assert accuracy >= model.score((held_out - mean) / std, truth) - 0.02

    def test_its_metrics_are_those_of_the_head_it_saved(self, digits_pipeline: Any) -> None:
        features, labels = side(digits_pipeline, "valid")
        saved = torch.load(digits_pipeline.root / "trial" / "head.pt")
        head = {name: value.double().numpy() for name, value in saved.items()}
        logits = (features - head["mean"]) * head["inverse_std"] @ head["weight"].T + head["bias"]
        loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean()
        log = digits_pipeline.jobs["trial"].log
        losses = figures(log, contract.METRIC_VALID_LOSS)
        assert losses[-1] == pytest.approx(loss, abs=1e-4)
        assert losses[-1] == min(losses)
        assert figures(log, contract.METRIC_ACCURACY)[-1] == pytest.approx(
            (logits.argmax(1) == labels).mean(), abs=1e-6
        )

    def test_metrics_are_printed_once_an_epoch_and_once_for_the_one_kept(self, digits_pipeline: Any) -> None:
        log = digits_pipeline.jobs["trial"].log
        parts = re.split(r"^(?:epoch \d+ of 15|kept epoch)", log, flags=re.MULTILINE)
        assert len(parts) == 1 + 15 + 1
        counts = [[len(figures(part, contract.METRIC_VALID_LOSS)), len(figures(part, contract.METRIC_ACCURACY))]
                  for part in parts]  # fmt: skip
        assert counts == [[0, 0]] + [[1, 1]] * 16
        assert not figures(log, contract.METRIC_TEST_LOSS)


class TestRepeatability:
    def test_another_process_finds_the_same_head_bit_for_bit(self, trial: Run, digits_pipeline: Any) -> None:
        job, head = trial(*RECIPE)
        assert job.status == 0
        assert same(head, torch.load(digits_pipeline.root / "trial" / "head.pt"))

    def test_train_finds_the_trials_head_bit_for_bit(self, digits_pipeline: Any) -> None:
        saved = torch.load(digits_pipeline.root / "trial" / "head.pt")
        linear = torch.nn.Linear(512, 10)
        linear.load_state_dict({name: saved[name] for name in ("weight", "bias")})
        expected = networks.Classifier(torch.nn.Identity(), linear)
        expected.mean.copy_(saved["mean"])
        expected.inverse_std.copy_(saved["inverse_std"])
        expected.fold()
        packed = torch.load(digits_pipeline.root / "train" / "model" / "model.pt")
        assert torch.equal(packed["head.weight"], expected.head.weight)
        assert torch.equal(packed["head.bias"], expected.head.bias)
        logs = (digits_pipeline.jobs[name].log.splitlines() for name in ("trial", "train"))
        ours, theirs = ([line for line in log if re.match("epoch|average|accuracy|kept", line)] for log in logs)
        assert ours == theirs

    def test_another_seed_or_value_finds_another(self, trial: Run) -> None:
        recipe = {"--lr": "0.01", "--batch-size": "64", "--epochs": "2", "--weight-decay": "0.1", "--seed": "1"}
        found = [trial(*(part for pair in recipe.items() for part in pair))[1]]
        for name, value in (("--seed", "2"), ("--lr", "0.02"), ("--batch-size", "65"), ("--weight-decay", "1")):
            found.append(trial(*(part for pair in {**recipe, name: value}.items() for part in pair))[1])
        for number, head in enumerate(found):
            assert head
            assert not any(same(head, other) for other in found[:number])


class TestHyperparameters:
    @pytest.mark.parametrize("quotes", [0, 1, 2])
    def test_quoted_values_are_the_same_values(self, trial: Run, quotes: int) -> None:
        def quoted(text: str) -> str:
            return ["{}", '"{}"', '"\\"{}\\""'][quotes].format(text)

        job, _ = trial("--lr", quoted("0.02"), "--batch-size", quoted("64"), "--epochs", quoted("1"))
        assert job.status == 0, job.error
        assert "lr=0.02 batch-size=64 epochs=1" in job.log

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("--learning-rate", "0.1"), "unknown option --learning-rate"),
            (("--batch-sise", "8"), "did you mean --batch-size?"),
            (("--lr", "fast"), "lr = fast: expected a finite number above 0"),
            (("--lr", '"-0.1"'), 'lr = "-0.1": expected a finite number above 0'),
            (("--lr", "nan"), "lr = nan"),
            (("--epochs", "0"), "epochs = 0: expected a whole number of at least 1"),
            (("--batch-size", "1.5"), "batch-size = 1.5: expected a whole number"),
            (("--objective", "loss"), "objective = loss: expected one of average validation loss, average test loss"),
        ],
    )
    def test_wrong_ones(self, trial: Run, fails: Run, arguments: tuple[str, str], reason: str) -> None:
        job, head = trial(*arguments)
        fails(job, reason)
        assert not head

    def test_as_a_process_of_its_own(self, run: Run, fails: Run, tmp_path: Path) -> None:
        fails(run("hpo.py", "--lr", "fast", "--model-dir", tmp_path / "model"), "lr = fast: expected a finite number")
        assert (tmp_path / "output" / "failure").is_file()

    @pytest.mark.parametrize("lr", ["30", "1e37"])
    def test_a_learning_rate_that_diverges(self, trial: Run, fails: Run, lr: str) -> None:
        job, head = trial("--lr", lr, "--epochs", "3")
        fails(job, f"training diverged with lr={float(lr):g}", "take a smaller lr")
        assert not head

    def test_fewer_photos_than_a_batch(self, trial: Run) -> None:
        job, head = trial("--batch-size", "100000", "--epochs", "5", "--lr", "0.05")
        assert job.status == 0, job.error
        assert torch.isfinite(head["weight"]).all()
        assert figures(job.log, contract.METRIC_ACCURACY)[-1] > 0.5


class TestFeatures:
    @pytest.fixture
    def copy(self, digits_pipeline: Any, tmp_path: Path) -> Path:
        return shutil.copytree(digits_pipeline.root / "features", tmp_path / "features")

    def only(self, copy: Path, name: str) -> Path:
        (path,) = copy.rglob(name)
        return path

    def test_the_test_side_is_read_for_its_own_objective_only(self, trial: Run, fails: Run, copy: Path) -> None:
        self.only(copy, "test/features.npy").write_bytes(b"unreadable")
        job, _ = trial("--epochs", "1", features=copy)
        assert job.status == 0, job.error
        assert not figures(job.log, contract.METRIC_TEST_LOSS)
        fails(trial("--epochs", "1", "--objective", "average test loss", features=copy)[0], "features", "test")

    def test_the_test_loss_is_reported_where_it_is_the_objective(self, trial: Run, digits_pipeline: Any) -> None:
        job, head = trial(*RECIPE, "--objective", "average test loss")
        assert len(figures(job.log, contract.METRIC_TEST_LOSS)) == 16
        assert same(head, torch.load(digits_pipeline.root / "trial" / "head.pt"))  # it is reported, not learned from

    def test_none(self, trial: Run, fails: Run, tmp_path: Path) -> None:
        fails(trial(features=tmp_path / "nowhere")[0], "nowhere", "Embed")

    @pytest.mark.parametrize("text", ["{", "{}", "[]", "7"])
    def test_a_description_that_is_none(self, trial: Run, fails: Run, copy: Path, text: str) -> None:
        self.only(copy, "features.json").write_text(text)
        fails(trial(features=copy)[0], "features.json", "cannot be read")

    @pytest.mark.parametrize("name", ["features.npy", "labels.npy"])
    @pytest.mark.parametrize("kept", [0, 60, 500])
    def test_cut_short(self, trial: Run, fails: Run, copy: Path, name: str, kept: int) -> None:
        path = self.only(copy, f"train/{name}")
        path.write_bytes(path.read_bytes()[:kept])
        fails(trial(features=copy)[0], "features of train", "run Embed again")

    @pytest.mark.parametrize("kind", [np.int32, np.float64])
    def test_labels_of_another_type(self, trial: Run, fails: Run, copy: Path, kind: type) -> None:
        path = self.only(copy, "valid/labels.npy")
        np.save(path, np.load(path).astype(kind))
        fails(trial(features=copy)[0], "features of valid", "run Embed again")

    @pytest.mark.parametrize("byte", range(0, 120, 7))
    def test_a_damaged_header_is_no_traceback(self, trial: Run, copy: Path, byte: int) -> None:
        path = self.only(copy, "valid/features.npy")
        damaged = bytearray(path.read_bytes())
        damaged[byte] ^= 0x11
        path.write_bytes(damaged)
        job, _ = trial("--epochs", "1", features=copy)
        assert job.status in (0, 1)
        assert "Traceback" not in job.error

    def test_fewer_labels_than_features(self, trial: Run, fails: Run, copy: Path) -> None:
        path = self.only(copy, "valid/labels.npy")
        np.save(path, np.load(path)[:-1])
        fails(trial(features=copy)[0], "features of valid")


class TestStatistics:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(20, 300), st.floats(-1e4, 1e4), st.floats(0.5, 1e3), st.integers(0, 9))
    def test_standardised_features_have_mean_0_and_deviation_1(
        self, count: int, centre: float, spread: float, seed: int
    ) -> None:
        features = np.random.default_rng(seed).normal(centre, spread, (count, 3)).astype(np.float32)
        mean, inverse = heads.statistics(features)
        assert (mean.dtype, inverse.dtype) == (np.float32, np.float32)
        exact = features.astype(np.float64)
        np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5, atol=1e-5 * spread)
        np.testing.assert_allclose(inverse * exact.std(0), 1, rtol=1e-3)

    def test_a_feature_that_never_changes_is_left_out(self) -> None:
        features = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        features[:, 1] = 7.1
        assert heads.statistics(features)[1].astype(bool).tolist() == [True, False, True]
