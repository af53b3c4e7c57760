"""Tuning jobs, through boto3; and the search alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.local import training, tuning
from pipelines.local.errors import ServiceError
from pipelines.local.machine import Machine, Options
from pipelines.local.tuning import Range, Search, ranges
from tests.local.definitions import BUCKET, Clients, bundle, tuning_request, until

SCRIPT = """
import sys
values = dict(zip(sys.argv[1::2], sys.argv[2::2]))
x = float(values["-x"])
if x == 13:
    sys.exit("error: unlucky")
print("loss: 99.0")
if x != 7:
    print(f"loss: {abs(x - 2) + 0.5}")
else:
    print("loss: none")
"""


def tune(clients: Clients, name: str, parameter_ranges: dict[str, Any], script: str = SCRIPT, **more: Any) -> Any:
    """Run a tuning job; its description once it has ended, and its trials."""
    uri = clients.put(f"code/{name}.tar.gz", bundle(hpo=script))
    request = tuning_request(uri, parameter_ranges, **more)
    clients.sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName=name, **request)
    job = until(
        lambda: clients.sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name),
        lambda job: job["HyperParameterTuningJobStatus"] in ("Completed", "Failed", "Stopped"),
    )
    listed = clients.sm.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending"
    )
    return job, listed["TrainingJobSummaries"]


def categorical(*values: str) -> dict[str, Any]:
    return {"CategoricalParameterRanges": [{"Name": "x", "Values": list(values)}]}


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_strategies_find_the_best(clients: Clients, strategy: str) -> None:
    job, trials = tune(clients, f"find-{strategy}", categorical("1", "2", "3"), strategy=strategy, jobs=3, RandomSeed=1)
    assert job["HyperParameterTuningJobStatus"] == "Completed"
    assert sorted(trial["TunedHyperParameters"]["x"] for trial in trials) == ["1", "2", "3"]
    best = job["BestTrainingJob"]
    assert best["TunedHyperParameters"] == {"x": "2"}
    assert best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 0.5
    assert all(trial["TrainingJobName"].startswith(f"find-{strategy}-00") for trial in trials)
    described = clients.sm.describe_training_job(TrainingJobName=best["TrainingJobName"])
    assert described["HyperParameters"]["x"] == "2"
    assert described["TuningJobArn"] == job["HyperParameterTuningJobArn"]
    by_objective = clients.sm.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=f"find-{strategy}", SortBy="FinalObjectiveMetricValue"
    )["TrainingJobSummaries"]
    assert by_objective[0]["TrainingJobName"] == best["TrainingJobName"]


def test_grid_runs_all_and_maximize_turns_it_round(clients: Clients) -> None:
    job, trials = tune(
        clients, "grid", categorical("1", "2", "9"), strategy="Grid", jobs=None, goal="Maximize", parallel=1
    )
    assert [trial["TunedHyperParameters"]["x"] for trial in trials] == ["1", "2", "9"]
    assert job["BestTrainingJob"]["TunedHyperParameters"] == {"x": "9"}


def test_a_trial_without_objective_fails_and_the_others_go_on(clients: Clients) -> None:
    # 7 prints "loss: none" after 99.0 as every trial does; let it print nothing that matches at all.
    script = SCRIPT.replace('print("loss: 99.0")', "")
    job, trials = tune(clients, "lacking", categorical("2", "7", "13"), script, strategy="Grid", jobs=None)
    assert job["HyperParameterTuningJobStatus"] == "Completed"
    by_value = {trial["TunedHyperParameters"]["x"]: trial for trial in trials}
    assert by_value["2"]["ObjectiveStatus"] == "Succeeded"
    assert (by_value["7"]["TrainingJobStatus"], by_value["7"]["ObjectiveStatus"]) == ("Failed", "Failed")
    assert "No objective metrics found" in by_value["7"]["FailureReason"]
    assert "error: unlucky" in by_value["13"]["FailureReason"]
    assert job["TrainingJobStatusCounters"] == {
        **{"Completed": 1, "InProgress": 0, "RetryableError": 0, "NonRetryableError": 2, "Stopped": 0}
    }
    assert job["ObjectiveStatusCounters"] == {"Succeeded": 1, "Pending": 0, "Failed": 2}


def test_all_trials_failed(clients: Clients) -> None:
    job, _ = tune(clients, "hopeless", categorical("13"), strategy="Random", jobs=1)
    assert job["HyperParameterTuningJobStatus"] == "Failed"
    assert "All training jobs failed" in job["FailureReason"]
    assert "error: unlucky" in job["FailureReason"]
    assert "BestTrainingJob" not in job


def test_stop_ends_the_trials(clients: Clients) -> None:
    uri = clients.put("code/endless.tar.gz", bundle(hpo="import time; time.sleep(300)"))
    request = tuning_request(uri, categorical("1", "2", "3"), jobs=3)
    clients.sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName="endless", **request)

    def describe() -> Any:
        return clients.sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="endless")

    until(describe, lambda job: job["TrainingJobStatusCounters"]["InProgress"] == 2)
    clients.sm.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="endless")
    job = until(describe, lambda job: job["HyperParameterTuningJobStatus"] == "Stopped")
    assert job["TrainingJobStatusCounters"]["Stopped"] == 2


@pytest.mark.parametrize(
    ("parameter_ranges", "more", "words"),
    [
        (categorical("1"), {"strategy": "Hyperband"}, "Hyperband is not supported"),
        (categorical("1", "2"), {"strategy": "Grid", "jobs": 3}, "2 combinations"),
        (
            {"IntegerParameterRanges": [{"Name": "x", "MinValue": "1", "MaxValue": "2"}]},
            {"strategy": "Grid"},
            "categorical ranges only",
        ),
        (categorical("1"), {"strategy": "Random", "jobs": None}, "MaxNumberOfTrainingJobs is required"),
        ({}, {}, "nothing to tune"),
        ({"ContinuousParameterRanges": [{"Name": "x", "MinValue": "2", "MaxValue": "1"}]}, {}, "must not be above"),
        ({"ContinuousParameterRanges": [{"Name": "x", "MinValue": "a", "MaxValue": "1"}]}, {}, "must be numbers"),
        (
            {"IntegerParameterRanges": [{"Name": "x", "MinValue": "0", "MaxValue": "9", "ScalingType": "Logarithmic"}]},
            {},
            "above 0",
        ),
    ],
)
def test_what_can_not_be_tuned(clients: Clients, parameter_ranges: Any, more: Any, words: str) -> None:
    request = tuning_request("s3://b/c.tar.gz", parameter_ranges, **more)
    with pytest.raises(clients.sm.exceptions.ClientError, match=words) as caught:
        clients.sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName="wrong", **request)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_max_runtime_stops_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the machine itself: the API takes no fewer than 120 s.
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(training, "_TOOLKIT", sleeper)
    machine = Machine(tmp_path, "http://127.0.0.1:1", Options(slots=2, stop_grace=1))
    machine.objects.create_bucket(BUCKET)
    request = tuning_request(f"s3://{BUCKET}/c.tar.gz", categorical("1", "2", "3"), strategy="Grid", jobs=None)
    request["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxRuntimeInSeconds"] = 1
    tuning.create(machine, {"HyperParameterTuningJobName": "late", **request})
    machine.wait(tuning.KIND, "late")
    job = machine.store.get(tuning.KIND, "late")
    machine.close()
    assert (job["HyperParameterTuningJobStatus"], job["TrainingJobStatusCounters"]["Stopped"]) == ("Failed", 2)
    assert job["FailureReason"] == "None of 2 training jobs completed"


# --- the search alone


def draw(space: list[Range], strategy: str = "Random", most: int = 50, seed: int = 1) -> list[dict[str, str]]:
    """What a search tries; the objective is the first value."""
    search = Search(strategy, space, most, True, seed)
    drawn = []
    for _ in range(most):
        asked = search.ask()
        if asked is None:
            break
        drawn.append(asked[1])
        search.tell(asked[0], float(next(iter(asked[1].values()))))
    return drawn


@pytest.mark.parametrize("strategy", ["Random", "Bayesian"])
def test_a_finite_space_is_tried_once_and_the_seed_decides(strategy: str) -> None:
    space = [Range("x", values=("1", "2")), Range("y", low=1, high=3, whole=True)]
    drawn = draw(space, strategy)
    assert len(drawn) == 6
    assert len({tuple(values.items()) for values in drawn}) == 6
    assert drawn == draw(space, strategy)
    assert drawn != draw(space, strategy, seed=2)


def test_scaling() -> None:
    def median(scaling: str, low: str, high: str) -> float:
        item = {"Name": "x", "MinValue": low, "MaxValue": high, "ScalingType": scaling}
        drawn = sorted(float(v["x"]) for v in draw(ranges({"ContinuousParameterRanges": [item]}), most=101))
        assert float(low) <= drawn[0] <= drawn[-1] <= float(high)
        return drawn[50]

    assert math.isclose(median("Linear", "0.0001", "1"), 0.5, abs_tol=0.15)
    assert 0.003 < median("Logarithmic", "0.0001", "1") < 0.03
    assert 0.003 < median("Auto", "0.0001", "1") < 0.03
    assert 0.97 < median("ReverseLogarithmic", "0", "0.9999") < 0.997


def test_reverse_logarithmic_needs_its_range() -> None:
    item = {"Name": "x", "MinValue": "0.5", "MaxValue": "1", "ScalingType": "ReverseLogarithmic"}
    with pytest.raises(ServiceError, match="0 <= x < 1"):
        ranges({"ContinuousParameterRanges": [item]})


def test_bayesian_gathers_around_the_optimum() -> None:
    space = [Range("x", low=0, high=100)]
    late = [float(values["x"]) for values in draw(space, "Bayesian", 40)][20:]
    assert sum(late) / len(late) < 30
