"""What is printed at the end of a run."""

import pytest

from pipelines import summary


def test_trials_that_were_stopped_early_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [
        {"name": "a", "status": "Completed", "hyperparameters": {"lr": 0.1}, "objective": 0.5},
        {"name": "b", "status": "Stopped", "hyperparameters": {"lr": 0.2}, "objective": 0.4},
        {"name": "c", "status": "Stopped", "hyperparameters": {"lr": 0.3}, "objective": 0.9},
        {"name": "d", "status": "Stopped", "hyperparameters": {"lr": 0.4}, "objective": None},
    ]
    rest = ("test_loss", "gate", "model_package_arn", "endpoint_name", "prediction")
    result = {
        **dict.fromkeys(rest),
        "status": "Succeeded",
        "steps": [],
        "trials": trials,
        "objective": "loss",
        "best_hyperparameters": {"lr": 0.2},
        "outputs": "s3://b/o",
    }
    summary.show(result)
    split = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    rows = [words[2] for words in split if words and words[0] in ("1", "2", "3", "4")]
    assert rows == ["0.5000", "0.4000  best, stopped early", "0.9000  stopped early", "Stopped"]
