"""Step caching: which runs are reused, and what a reused step shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.local import caching
from tests.local.definitions import (
    BUCKET,
    OUT,
    Clients,
    bundle,
    cached,
    channel,
    get,
    join,
    json_get,
    pipeline,
    processing,
    training_request,
    tuning_request,
)

EXECUTION = get("Execution.PipelineExecutionId")
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[-1], 'r.json').write_text('{\"value\": 1}')"
SAVE = "import os, pathlib; print('loss: 1.0'); pathlib.Path(os.environ['SM_MODEL_DIR'], 'w').write_text('1')"


@pytest.mark.parametrize(
    ("text", "hours"),
    [("P30D", 720), ("PT12H", 12), ("P1DT2H", 26), ("P1W", 168), ("30d", 720), ("T60m", 1), ("30dT5h", 725)],
)
def test_durations(text: str, hours: int) -> None:
    assert caching.seconds(text) == hours * 3600


@given(st.lists(st.integers(0, 99), min_size=6, max_size=6))
def test_every_unit_counts(numbers: list[int]) -> None:
    years, months, weeks, days, hours, minutes = numbers
    text = f"P{years}Y{months}M{weeks}W{days}DT{hours}H{minutes}M"
    whole_days = years * 365 + months * 30 + weeks * 7 + days
    assert caching.seconds(text) == ((whole_days * 24 + hours) * 60 + minutes) * 60


@pytest.mark.parametrize("text", ["", "P", "PT", "T", "P1DT", "1", "P1H", "P-1D", "P1.5D", "PT5S", "P1D ", "P2DT1D"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        caching.seconds(text)


def prepare(command: str = WRITE, **more: Any) -> dict[str, Any]:
    """A processing step whose output lies under its execution's id."""
    files = [{"PropertyFileName": "R", "OutputName": "o", "FilePath": "r.json"}]
    uri = join(OUT, "caching", EXECUTION, on="/")
    return cached(processing("Prepare", command, outputs={"o": uri}, PropertyFiles=files, **more))


def chain(clients: Clients, epochs: int = 1) -> dict[str, Any]:
    """Processing, tuning, training, and a condition that reads the first one's property file."""
    code = clients.put("code/caching.tar.gz", bundle(train=SAVE, hpo=SAVE))
    prepared = channel("prepared", get("Steps.Prepare.ProcessingOutputConfig.Outputs['o'].S3Output.S3Uri"))
    tune = tuning_request(code, {"CategoricalParameterRanges": [{"Name": "x", "Values": ["1", "2"]}]}, jobs=2)
    tune["TrainingJobDefinition"]["InputDataConfig"] = [prepared]
    tune["TrainingJobDefinition"]["OutputDataConfig"] = {"S3OutputPath": join(OUT, EXECUTION, "tune", on="/")}
    best = get("Steps.Tune.BestTrainingJob.TunedHyperParameters['x']")
    train = training_request(code, x=best, epochs=str(epochs))
    train["InputDataConfig"] = [prepared]
    train["OutputDataConfig"] = {"S3OutputPath": join(OUT, EXECUTION, "train", on="/")}
    condition = {"Type": "Equals", "LeftValue": json_get("Prepare", "R", "value"), "RightValue": 1}
    return pipeline(
        [
            prepare(),
            cached({"Name": "Tune", "Type": "Tuning", "Arguments": tune}),
            cached({"Name": "Train", "Type": "Training", "Arguments": train}),
            {
                "Name": "Gate",
                "Type": "Condition",
                "Arguments": {"Conditions": [condition], "IfSteps": [], "ElseSteps": []},
            },
        ]
    )


def reused(steps: dict[str, Any]) -> dict[str, str]:
    """Step -> the execution it was taken from."""
    return {
        name: step["CacheHitResult"]["SourcePipelineExecutionArn"]
        for name, step in steps.items()
        if "CacheHitResult" in step
    }


def log(state: Path, arn: str, step: str) -> str:
    """What service.log says of a step of an execution."""
    lines = (state / "service.log").read_text().splitlines()
    return next(line for line in lines if f"step {step} of {arn}: " in line)


def test_a_second_run_takes_everything_from_the_first(clients: Clients, state: Path) -> None:
    first = clients.start(chain(clients), "cached")
    assert clients.wait(first)["PipelineExecutionStatus"] == "Succeeded"
    ran = clients.steps(first)
    assert reused(ran) == {}
    assert "not cached: there is no earlier successful run" in log(state, first, "Prepare")

    second = clients.start(chain(clients), "cached")
    assert clients.wait(second)["PipelineExecutionStatus"] == "Succeeded"
    steps = clients.steps(second)
    assert reused(steps) == dict.fromkeys(("Prepare", "Tune", "Train"), first)
    assert all(steps[name]["Metadata"] == ran[name]["Metadata"] for name in reused(steps))
    assert steps["Gate"]["Metadata"]["Condition"]["Outcome"] == "True"  # by the property file of the first run
    assert f"cached, from {first}" in log(state, second, "Train")

    third = clients.start(chain(clients, epochs=2), "cached")
    clients.wait(third)
    # It is the run that made the result that is named, not the one that reused it.
    assert reused(clients.steps(third)) == dict.fromkeys(("Prepare", "Tune"), first)
    assert "had other HyperParameters" in log(state, third, "Train")


def test_another_pipeline_has_a_cache_of_its_own(clients: Clients) -> None:
    definition = pipeline([prepare()])
    for name in ("cache-one", "cache-other"):
        _, steps = clients.run(definition, name)
        assert reused(steps) == {}


def test_runs_without_caching_are_not_taken_from_the_cache_but_fill_it(clients: Clients) -> None:
    off = {**prepare(), "CacheConfig": {"Enabled": False, "ExpireAfter": "P1D"}}
    for _ in range(2):
        _, steps = clients.run(pipeline([off]), "cache-off")
        assert reused(steps) == {}
    _, steps = clients.run(pipeline([prepare()]), "cache-off")
    assert set(reused(steps)) == {"Prepare"}


def test_failed_runs_are_not_reused(clients: Clients) -> None:
    for _ in range(2):
        _, steps = clients.run(pipeline([prepare("import sys; sys.exit(1)")]), "cache-failed")
        assert (steps["Prepare"]["StepStatus"], reused(steps)) == ("Failed", {})


def test_a_run_that_is_too_old_is_not_reused(clients: Clients, state: Path) -> None:
    clients.run(pipeline([prepare()]), "cache-old")
    arn = clients.start(pipeline([cached(prepare(), "PT0H")]), "cache-old")
    clients.wait(arn)
    assert reused(clients.steps(arn)) == {}
    assert "is older than PT0H" in log(state, arn, "Prepare")


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_outputs_that_are_gone_or_changed_are_made_again(clients: Clients, state: Path, change: str) -> None:
    first = clients.start(pipeline([prepare()]), f"cache-{change}")
    clients.wait(first)
    key = f"out/caching/{first.rsplit('/', 1)[1]}"
    if change == "gone":
        shutil.rmtree(state / "s3" / BUCKET / key)
    else:
        clients.put(f"{key}/r.json", '{"value": 2}')
    second = clients.start(pipeline([prepare()]), f"cache-{change}")
    clients.wait(second)
    assert reused(clients.steps(second)) == {}
    assert f"{key} that is gone or has changed" in log(state, second, "Prepare")
    _, steps = clients.run(pipeline([prepare()]), f"cache-{change}")
    assert reused(steps) == {"Prepare": second}


def test_an_output_the_earlier_run_did_not_have_is_made(clients: Clients, state: Path) -> None:
    clients.run(pipeline([prepare()]), "cache-output")
    step = prepare()
    outputs = step["Arguments"]["ProcessingOutputConfig"]["Outputs"]
    more = json.loads(json.dumps(outputs[0]).replace('"o"', '"more"').replace("processing/o", "processing/more"))
    outputs.append(more)
    arn = clients.start(pipeline([step]), "cache-output")
    clients.wait(arn)
    assert "has no output more" in log(state, arn, "Prepare")


@pytest.mark.parametrize(
    ("kind", "request_", "counts"),
    [
        ("Processing", {"Environment": {"A": "1"}}, True),
        ("Processing", {"ProcessingOutputConfig": {"Outputs": []}}, False),
        ("Processing", {"ProcessingResources": {}}, False),
        ("Training", {"CheckpointConfig": {"S3Uri": "s3://b/c"}}, True),
        ("Training", {"DebugHookConfig": {"S3OutputPath": "s3://b/c", "HookParameters": {}}}, True),
        ("Training", {"OutputDataConfig": {"S3OutputPath": "s3://b/c"}}, False),
        ("Training", {"TrainingJobName": "n"}, False),
        ("Tuning", {"HyperParameterTuningJobConfig": {"Strategy": "Random"}}, True),
        ("Tuning", {"HyperParameterTuningJobName": "n"}, False),
    ],
)
def test_what_counts(kind: str, request_: dict[str, Any], counts: bool) -> None:
    assert (caching.attributes(kind, request_) != caching.attributes(kind, {})) is counts


def test_where_the_debugger_and_the_trials_write_does_not_count() -> None:
    def training(place: str) -> dict[str, Any]:
        rule = {"RuleConfigurationName": "Overfit", "S3OutputPath": place}
        return {"DebugHookConfig": {"S3OutputPath": place}, "DebugRuleConfigurations": [rule]}

    def tuning(place: str) -> dict[str, Any]:
        output = {"S3OutputPath": place}
        return {"TrainingJobDefinition": {"OutputDataConfig": output, "StaticHyperParameters": {"a": "1"}}}

    assert caching.attributes("Training", training("s3://b/1")) == caching.attributes("Training", training("s3://b/2"))
    assert caching.attributes("Tuning", tuning("s3://b/1")) == caching.attributes("Tuning", tuning("s3://b/2"))
    assert "StaticHyperParameters" in caching.attributes("Tuning", tuning("s3://b/1"))["TrainingJobDefinition"]
