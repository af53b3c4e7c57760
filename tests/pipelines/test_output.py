"""What people and machines get to read: predictions, tables, summaries; and the sample dataset."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import predict, sample, summary, terminal
from pipelines.errors import UserError
from pipelines.execution import Step
from pipelines.predict import Prediction

STEPS = [
    Step("Split", "Processing", "Succeeded", 3.21, figure="1797 photos"),
    Step("Train", "Training", "Failed", 185.0, reason="it broke"),
    Step(
        "Embed",
        "Processing",
        "Succeeded",
        0.0,
        source="arn:aws:sagemaker:us-east-1:000000000000:pipeline/p/execution/before",
    ),
    Step("Evaluate", "Processing"),
]
RESULT: dict[str, Any] = {
    "execution_arn": "arn:aws:sagemaker:us-east-1:000000000000:pipeline/p/execution/e",
    "status": "Succeeded", "failure_reason": None, "steps": [], "outputs": "s3://bucket/p/executions/e",
    "best_hyperparameters": {"lr": 0.01, "batch-size": 32}, "objective": "average validation loss",
    "trials": [
        {"name": "a", "status": "Completed", "hyperparameters": {"lr": 0.01, "batch-size": 32}, "objective": 0.25},
        {"name": "b", "status": "Failed", "hyperparameters": {"lr": 0.1, "batch-size": 64}, "objective": None},
    ],
    "test_loss": 0.5, "accuracy": 0.875, "gate": "passed", "test_loss_threshold": 1.0, "random_weights": True,
    "model_package_arn": "arn:package/1", "approval_status": "PendingManualApproval", "endpoint_name": None,
    "prediction": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wish about colours in the environment."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_summary_elsewhere_than_on_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(RESULT)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())
    for words in ("lr = 0.01, batch-size = 32", "0.5000", "87.50%  (the backbone started from random weights)",
                  "passed: test loss 0.5000 <= TestLossThreshold 1", "s3://bucket/p/executions/e",
                  "Not deployed: ApprovalStatus is PendingManualApproval"):  # fmt: skip
        assert words in out
    (best,) = [line for line in out.splitlines() if line.endswith("best")]
    assert best.split() == ["1", "32", "0.01", "0.2500", "best"]
    assert [line.split() for line in out.splitlines() if line.endswith("Failed")] == [["2", "64", "0.1", "Failed"]]


def test_a_long_line_is_not_wrapped_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.out().print("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_on_a_terminal_there_are_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal_end = os.openpty()
    with os.fdopen(terminal_end, "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        terminal.print_table(terminal.out(), terminal.table_of(STEPS, ended=True))
        file.flush()
        shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert "\x1b[32mSucceeded" in shown


def test_the_table_tells_the_state_of_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    for ended, waiting in ((True, "not run"), (False, "waiting")):
        terminal.print_table(terminal.out(), terminal.table_of(STEPS, ended))
        out = capsys.readouterr().out
        assert "\x1b" not in out
        rows = [line.split("  ") for line in out.splitlines()]
        cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
        assert cells == [
            ["step", "state", "time", "last metric"],
            ["Split", "Succeeded", "3.2 s", "1797 photos"],
            ["Train", "Failed", "3 min 05 s"],
            ["Embed", "Succeeded (cached)", "0.0 s"],
            ["Evaluate", waiting],
        ]


def test_progress_is_a_line_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.board() as board:
        board.show(STEPS[:1], ended=False)
        board.show(STEPS, ended=False)
        board.show(STEPS, ended=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[:2] for line in err.splitlines()] == [
        ["Split", "Succeeded"],
        ["Train", "Failed"],
        ["Embed", "Succeeded"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.04, "0.0 s"), (9.99, "10.0 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.6, "1 h 00 min"), (7800, "2 h 10 min")],
)  # fmt: skip
def test_a_duration_is_for_people(seconds: float | None, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({**RESULT, "where": Path("outputs")})
    assert json.loads(capsys.readouterr().out) == {**RESULT, "where": "outputs"}


def test_a_failure_names_the_step_and_shows_the_end_of_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"name": "Train", "failure_reason": "it broke", "log": ["[bold]epoch 1[/bold]", "ValueError"]}]
    error = summary.failure({"status": "Failed", "failure_reason": "a step failed", "failed_steps": failed})
    assert (str(error), error.status) == ("step Train failed: it broke", 1)
    assert "  [bold]epoch 1[/bold]\n  ValueError\n" in capsys.readouterr().err
    stopped = summary.failure({"status": "Stopped", "failure_reason": None})
    assert str(stopped) == "the execution ended as Stopped"


# --- predictions


def test_a_prediction_is_a_line_of_the_three_most_probable() -> None:
    answer = Prediction("a/7.jpg", "cat", {"cat": 0.9806, "dog": 0.012, "fox": 0.0044, "owl": 0.003})
    assert answer.line() == "a/7.jpg: cat 98.1%, dog 1.2%, fox 0.4%"
    assert Prediction.from_json(json.loads(json.dumps(answer.to_json()))) == answer


def test_a_photo_larger_than_a_request_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    with photo.open("wb") as file:
        file.truncate(25_000_001)
    with pytest.raises(UserError, match=r"has 25,000,001 bytes: an endpoint takes at most 25,000,000"):
        predict.read(str(photo))
    photo.write_bytes(b"small")
    assert predict.read(str(photo)) == b"small"


# --- the sample


def test_the_sample_is_all_digits_and_the_same_every_time(digits: Path, tmp_path: Path) -> None:
    photos = sorted(digits.rglob("*.png"))
    counts = Counter(path.parent.name for path in photos)
    assert len(photos) == 1797
    assert sorted(counts) == list("0123456789")
    assert (min(counts.values()), max(counts.values())) == (174, 183)
    with Image.open(photos[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
    assert sample.write(tmp_path, per_class=5) == 50
    again = sorted(tmp_path.rglob("*.png"))
    assert len(again) == 50
    for path in again:
        assert path.read_bytes() == (digits / path.relative_to(tmp_path)).read_bytes()
