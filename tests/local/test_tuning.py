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


def hyperband(least: int, most: int) -> dict[str, Any]:
    return {"StrategyConfig": {"HyperbandStrategyConfig": {"MinResource": least, "MaxResource": most}}}


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
        (categorical("1"), {"strategy": "Hyperband"}, "needs MaxResource .*epochs, numepochs"),
        (categorical("1"), {"strategy": "Hyperband", **hyperband(9, 3)}, "they are 9 and 3"),
        (categorical("1"), {"strategy": "Hyperband", **hyperband(1, 20_001)}, "<= 20000"),
        (
            categorical("1"),
            {"strategy": "Hyperband", **hyperband(1, 9), "TrainingJobEarlyStoppingType": "Auto"},
            "TrainingJobEarlyStoppingType must be Off for the strategy Hyperband",
        ),
        (categorical("1"), {"strategy": "Random", **hyperband(1, 9)}, "for the strategy Hyperband only"),
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


# A value of the objective every 0.25 s, x all the time; told to stop, it says one last word.
EPOCHS = """
import signal, sys, time
values = dict(zip(sys.argv[1::2], sys.argv[2::2]))
x = float(values["-x"])
signal.signal(signal.SIGTERM, lambda *_: (print(f"loss: {x + 0.5}", flush=True), sys.exit(0)))
if x == 13:
    sys.exit("error: diverged")
for epoch in range(int(values.get("--epochs", 60 if x > 5 else 4))):
    print(f"loss: {x}", flush=True)
    time.sleep(0.25 if x > 5 else 0.05)
"""


def ended_early(job: dict[str, Any], trials: list[dict[str, Any]]) -> set[str]:
    """The values of x whose trials were stopped, each with its last metric as its objective."""
    stopped = [trial for trial in trials if trial["TrainingJobStatus"] == "Stopped"]
    assert job["TrainingJobStatusCounters"]["Stopped"] == len(stopped)
    for trial in stopped:
        x = float(trial["TunedHyperParameters"]["x"])
        assert trial["ObjectiveStatus"] == "Succeeded"
        assert trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == x + 0.5
        assert "FailureReason" not in trial
    return {trial["TunedHyperParameters"]["x"] for trial in stopped}


def test_early_stopping_ends_trials_worse_than_the_median(clients: Clients) -> None:
    values = categorical("1", "2", "13", "9")
    options = {"strategy": "Grid", "jobs": None, "parallel": 1, "TrainingJobEarlyStoppingType": "Auto"}
    job, trials = tune(clients, "median", values, EPOCHS, **options)
    assert job["HyperParameterTuningJobStatus"] == "Completed"
    assert job["BestTrainingJob"]["TunedHyperParameters"] == {"x": "1"}
    assert ended_early(job, trials) == {"9"}
    assert "error: diverged" in trials[2]["FailureReason"]


def test_without_early_stopping_none_is_stopped(clients: Clients) -> None:
    job, trials = tune(clients, "patient", categorical("1", "2", "4"), EPOCHS, strategy="Grid", jobs=None, parallel=1)
    assert ended_early(job, trials) == set()


def test_hyperband_ends_the_hopeless_and_what_exceeds_max_resource(clients: Clients) -> None:
    # One bracket, as MinResource is over a third of MaxResource: after 2 values only the best third goes on.
    options = {"strategy": "Hyperband", "jobs": 3, "parallel": 1, "RandomSeed": 3, **hyperband(2, 5)}
    job, trials = tune(clients, "hyperband", categorical("7", "8", "9"), EPOCHS, **options)
    assert job["HyperParameterTuningJobStatus"] == "Completed"
    assert ended_early(job, trials) == {"7", "8", "9"}  # all print 60 values: the best is stopped by MaxResource
    best = job["BestTrainingJob"]
    assert (best["TunedHyperParameters"], best["TrainingJobStatus"]) == ({"x": "7"}, "Stopped")
    assert job["ObjectiveStatusCounters"] == {"Succeeded": 3, "Pending": 0, "Failed": 0}
    values = {}
    for trial in trials:
        log = clients.log("/aws/sagemaker/TrainingJobs", trial["TrainingJobName"])
        values[trial["TunedHyperParameters"]["x"]] = log.count("loss: ") - 1  # without the last word
    first = trials[0]["TunedHyperParameters"]["x"]
    assert all(6 <= values[x] < 30 for x in {first, "7"})
    assert all(2 <= values[x] < 30 for x in {"8", "9"} - {first})


def test_trials_run_on_one_instance(clients: Clients) -> None:
    request = tuning_request("s3://b/c.tar.gz", categorical("1", "2"))
    request["TrainingJobDefinition"]["ResourceConfig"]["InstanceCount"] = 2
    with pytest.raises(clients.sm.exceptions.ClientError, match="InstanceCount of a TrainingJobDefinition must be 1"):
        clients.sm.create_hyper_parameter_tuning_job(HyperParameterTuningJobName="wide", **request)


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


def lengths(search: Search, epochs: int, objectives: list[float]) -> list[int]:
    """How many epochs trials of these (constant) objectives get, one after the other."""
    found = []
    for objective in objectives:
        asked = search.ask()
        assert asked is not None
        trial = asked[0]
        used = 0
        stop = False
        while used < epochs and not stop:
            used += 1
            stop = search.report(trial, objective)
        search.tell(trial, objective, early=stop)
        found.append(used)
    return found


def test_hyperband_spends_less_and_keeps_the_best() -> None:
    space = [Range("x", low=0, high=1)]
    objectives = [(number * 37 % 60) / 60 for number in range(60)]
    for minimize in (True, False):
        search = Search("Hyperband", space, 60, minimize, 1, hyperband=(1, 27))
        found = lengths(search, 27, objectives)
        best = objectives.index(min(objectives) if minimize else max(objectives))
        assert found[best] == 27
        assert sum(found) < 60 * 27 / 2
        again = Search("Hyperband", space, 60, minimize, 1, hyperband=(1, 27))
        assert lengths(again, 27, objectives) == found


def test_min_resource_is_what_every_trial_gets() -> None:
    search = Search("Hyperband", [Range("x", low=0, high=1)], 30, True, 1, hyperband=(4, 27))
    found = lengths(search, 27, [float(number) for number in range(30)])
    assert min(found) == 4


def test_the_median_needs_trials_to_compare_with() -> None:
    search = Search("Random", [Range("x", low=0, high=1)], 6, True, 1, early=True)
    assert lengths(search, 9, [5.0, 4.0, 6.0, 1.0, 9.0]) == [9, 9, 1, 9, 1]


@pytest.mark.parametrize("text", ["27", '"27"', '"\\"27\\""'])
def test_max_resource_is_inferred_from_the_epochs(text: str) -> None:
    assert tuning.resources({"Strategy": "Hyperband"}, {"n-epochs": text}) == (1, 27)


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
