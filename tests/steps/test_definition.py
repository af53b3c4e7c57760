"""The definition: the same bytes every time, valid for SageMaker, and saying what the steps are meant to do."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines import contract, settings
from pipelines.contract import ROOT
from pipelines.local.definition import Invalid, parse
from pipelines.service_model import check_step

CODE = "s3://sagemaker-us-east-1-000000000000/x/code/0123456789abcdef"
JOBS = ("Split", "Embed", "Tune", "Train", "Evaluate")
PRESETS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@cache
def text_of(preset: str = "dogbreed.yaml", **overrides: Any) -> str:
    from pipelines import pipeline

    uris = {"data": "s3://photos/dogs", "weights": "s3://photos/resnet18.pth"}
    return pipeline.definition(settings.load(ROOT / "configs" / preset, {**uris, **overrides}), CODE)


def definition(preset: str = "dogbreed.yaml", **overrides: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text_of(preset, **overrides))
    return found


def walk(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for step in steps:
        yield step
        if step["Type"] == "Condition":
            yield from walk(step["Arguments"]["IfSteps"] + step["Arguments"]["ElseSteps"])


def steps_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["Name"]: step for step in walk(document["Steps"])}


# --- the whole


BUILD = """
import socket, sys
from pathlib import Path
def refuse(*arguments, **options): raise AssertionError(f"the network was asked for: {arguments}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from pipelines import pipeline, settings
uris = {"data": "s3://photos/dogs", "weights": "s3://photos/resnet18.pth"}
print(pipeline.definition(settings.load(Path("configs/dogbreed.yaml"), uris), sys.argv[1]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Built in two processes of their own: no credentials, no home, no network."""
    home = tmp_path_factory.mktemp("home")
    texts = []
    for seed in "12":
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        process = subprocess.run(
            [sys.executable, "-c", BUILD, CODE], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        texts.append(process.stdout.strip())
    return texts


def test_two_builds_are_the_same_bytes_without_credentials_and_network(built: list[str]) -> None:
    assert built[0] == built[1] == text_of()


def test_it_is_small() -> None:
    assert len(text_of().encode()) < 100_000
    assert len(text_of(debugger="managed").encode()) < 100_000


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("debugger", ["job", "managed", "off"])
def test_every_step_is_valid_for_sagemaker(preset: str, debugger: str) -> None:
    document = definition(preset, debugger=debugger)
    assert {step["Name"]: check_step(step) for step in walk(document["Steps"]) if check_step(step)} == {}
    assert list(steps_of(document)) == list(parse(text_of(preset, debugger=debugger)).steps)


def test_it_is_valid_with_everything_switched_on() -> None:
    everything = {
        "objective": "average test loss", "kms_key": "arn:aws:kms:us-east-1:123456789012:key/abc", "cache_days": 0,
        "training_instance_type": "ml.g5.xlarge", "strategy": "Random", "region": "eu-west-1",
    }  # fmt: skip
    steps = steps_of(definition(**everything))
    assert [message for step in steps.values() for message in check_step(step)] == []
    assert steps["Train"]["Arguments"]["ResourceConfig"]["VolumeKmsKeyId"] == everything["kms_key"]
    assert steps["Train"]["Arguments"]["OutputDataConfig"]["KmsKeyId"] == everything["kms_key"]
    assert steps["Split"]["Arguments"]["ProcessingOutputConfig"]["KmsKeyId"] == everything["kms_key"]
    assert steps["EndpointConfig"]["Arguments"]["KmsKeyId"] == everything["kms_key"]
    assert ".eu-west-1." in steps["Train"]["Arguments"]["AlgorithmSpecification"]["TrainingImage"]
    assert "-cu" in steps["Train"]["Arguments"]["AlgorithmSpecification"]["TrainingImage"]
    assert "-cpu-" in steps["Split"]["Arguments"]["AppSpecification"]["ImageUri"]
    assert {channel["InputName"] for channel in steps["Embed"]["Arguments"]["ProcessingInputs"]} >= {"test"}


BROKEN = {
    "unknown member": ("Train", ["Colour"], "red", "Colour"),
    "wrong type": ("Train", ["StoppingCondition", "MaxRuntimeInSeconds"], "soon", "MaxRuntimeInSeconds"),
    "below the minimum": ("Train", ["StoppingCondition", "MaxRuntimeInSeconds"], 0, "MaxRuntimeInSeconds"),
    "no such choice": ("Split", ["ProcessingInputs", 0, "S3Input", "S3DataType"], "Folder", "S3DataType"),
    "against the pattern": ("Train", ["RoleArn"], "my role", "RoleArn"),
    "too long": ("Split", ["AppSpecification", "ContainerEntrypoint", 0], "x" * 300, "ContainerEntrypoint"),
    "no variable": ("Tune", ["TrainingJobDefinition", "RoleArn"], {"Get": "Nowhere.X"}, "RoleArn"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_check_finds_what_sagemaker_would_refuse(kind: str) -> None:
    name, path, value, named = BROKEN[kind]
    step = copy.deepcopy(steps_of(definition())[name])
    place: Any = step["Arguments"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert any(named in message for message in check_step(step))


@pytest.mark.parametrize(("name", "member"), [("Train", "OutputDataConfig"), ("Split", "ProcessingResources")])
def test_the_check_finds_what_is_missing(name: str, member: str) -> None:
    step = copy.deepcopy(steps_of(definition())[name])
    del step["Arguments"][member]
    assert any(member in message for message in check_step(step))


# --- parameters


def test_the_parameters_are_typed_and_have_defaults() -> None:
    declared = {each["Name"]: (each["Type"], each["DefaultValue"]) for each in definition()["Parameters"]}
    assert declared == {
        "InputData": ("String", "s3://photos/dogs"),
        "Weights": ("String", "s3://photos/resnet18.pth"),
        "ProcessingInstanceType": ("String", "ml.m5.xlarge"),
        "TrainingInstanceType": ("String", "ml.m5.xlarge"),
        "TrainingInstanceCount": ("Integer", 1),
        "EndpointInstanceType": ("String", "ml.m5.large"),
        "Epochs": ("Integer", 5),
        "Trainable": ("String", "head"),
        "TestLossThreshold": ("Float", 1.0),
        "ApprovalStatus": ("String", "PendingManualApproval"),
        "EndpointName": ("String", "dogbreed"),
    }
    assert list(declared) == list(settings.PARAMETERS)


def test_every_parameter_is_used() -> None:
    used = set(re.findall(r'"Get": "Parameters\.(\w+)"', text_of()))
    assert used == set(settings.PARAMETERS)


# --- what the steps say


def test_the_reference_experiment() -> None:
    job = steps_of(definition())["Tune"]["Arguments"]["HyperParameterTuningJobConfig"]
    ranges = {each["Name"]: each["Values"] for each in job["ParameterRanges"]["CategoricalParameterRanges"]}
    assert ranges == {"lr": ["0.001", "0.1"], "batch-size": ["10", "32"]}
    words = steps_of(definition())["Embed"]["Arguments"]["AppSpecification"]["ContainerArguments"]
    assert words[words.index("--backbone") + 1] == "resnet18"


def test_train_gets_the_best_trials_values() -> None:
    hyperparameters = steps_of(definition())["Train"]["Arguments"]["HyperParameters"]
    best = "Steps.Tune.BestTrainingJob.TunedHyperParameters"
    assert hyperparameters["lr"] == {"Get": f"{best}['lr']"}
    assert hyperparameters["batch-size"] == {"Get": f"{best}['batch-size']"}


@pytest.mark.parametrize(
    "wrong",
    [
        "Steps.Tune.BestTrainingJob.TunedHyperparameters['lr']",
        "Steps.Tune.BestJob.TunedHyperParameters['lr']",
        "Steps.Tuning.BestTrainingJob.TunedHyperParameters['lr']",
    ],
)
def test_a_misspelt_hand_off_is_refused(wrong: str) -> None:
    text = text_of().replace("Steps.Tune.BestTrainingJob.TunedHyperParameters['lr']", wrong)
    assert text != text_of()
    with pytest.raises(Invalid):
        parse(text)


def test_checkpoints_lie_in_one_place_for_all_executions() -> None:
    """The step cache compares the URI: an execution's id in it, and Train would never be reused."""
    train = steps_of(definition())["Train"]["Arguments"]
    place = "s3://sagemaker-us-east-1-000000000000/dogbreed/checkpoints"
    assert train["CheckpointConfig"] == {"LocalPath": "/opt/ml/checkpoints", "S3Uri": place}
    assert "CheckpointConfig" not in steps_of(definition())["Tune"]["Arguments"]["TrainingJobDefinition"]


def test_retries_wherever_sagemaker_has_them() -> None:
    for name, step in steps_of(definition()).items():
        kinds = [kind for policy in step.get("RetryPolicies", []) for kind in policy["ExceptionType"]]
        if name in JOBS:
            assert {"Step.THROTTLING", "SageMaker.CAPACITY_ERROR", "SageMaker.JOB_INTERNAL_ERROR"} <= set(kinds)
        elif name in ("Register", "Model", "EndpointConfig"):
            assert {"Step.THROTTLING", "Step.SERVICE_FAULT"} == set(kinds)
        else:
            assert kinds == []


def test_caching_of_the_jobs_and_nothing_else() -> None:
    for days, expected in ((30, {"Enabled": True, "ExpireAfter": "P30D"}), (0, {"Enabled": False})):
        for name, step in steps_of(definition(cache_days=days)).items():
            assert step.get("CacheConfig") == (expected if name in JOBS else None)


def test_the_debugger_in_the_job_needs_no_closed_service() -> None:
    for mode in ("job", "off"):
        train = steps_of(definition(debugger=mode))["Train"]["Arguments"]
        assert not [member for member in train if "Debug" in member or "Profiler" in member]
        assert train["HyperParameters"]["debugger"] == mode


def test_the_managed_debugger() -> None:
    train = steps_of(definition(debugger="managed"))["Train"]["Arguments"]
    rules = [rule["RuleConfigurationName"] for rule in train["DebugRuleConfigurations"]]
    assert rules == ["VanishingGradient", "Overfit", "Overtraining", "PoorWeightInitialization", "LossNotDecreasing"]
    assert [rule["RuleConfigurationName"] for rule in train["ProfilerRuleConfigurations"]] == ["ProfilerReport"]
    assert train["ProfilerConfig"]["ProfilingIntervalInMilliseconds"] == 500
    names = [each["CollectionName"] for each in train["DebugHookConfig"]["CollectionConfigurations"]]
    assert {"losses", "gradients", "weights"} <= set(names)
    assert len(names) == len(set(names))


def test_metrics_are_found_in_the_lines_the_scripts_print(capsys: pytest.CaptureFixture[str]) -> None:
    import heads  # code/

    heads.print_metrics(heads.Score(0.00001234, 0.5), heads.Score(12.5, 0.25))
    printed = capsys.readouterr().out
    for step in ("Tune", "Train"):
        arguments = steps_of(definition())[step]["Arguments"]
        specification = arguments.get("TrainingJobDefinition", arguments)["AlgorithmSpecification"]
        found = {
            metric["Name"]: float(re.findall(metric["Regex"], printed)[-1])
            for metric in specification["MetricDefinitions"]
        }
        assert found == {"average validation loss": 0.000012, "average test loss": 12.5, "accuracy": 0.5}


def test_the_gate_reads_the_evaluation_and_fails_with_the_figure() -> None:
    steps = steps_of(definition())
    evaluation = steps["Evaluate"]["PropertyFiles"]
    assert [(each["OutputName"], each["FilePath"]) for each in evaluation] == [("evaluation", contract.EVALUATION_FILE)]
    condition = steps["Gate"]["Arguments"]["Conditions"][0]
    figure = {
        "Std:JsonGet": {
            "PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.Evaluation"},
            "Path": contract.TEST_LOSS_PATH,
        }
    }
    assert condition["LeftValue"] == figure
    assert condition["RightValue"] == {"Get": "Parameters.TestLossThreshold"}
    assert [step["Name"] for step in steps["Gate"]["Arguments"]["IfSteps"]] == ["Register"]
    message = json.dumps(steps["GateFailed"]["Arguments"]["ErrorMessage"])
    assert json.dumps(figure) in message
    assert "Parameters.TestLossThreshold" in message


def test_nothing_depends_on_a_condition() -> None:
    """SageMaker refuses such a definition."""
    steps = steps_of(definition())
    conditions = {name for name, step in steps.items() if step["Type"] == "Condition"}
    assert not [name for name, step in steps.items() if conditions & set(step.get("DependsOn", []))]
    assert [step["Name"] for step in steps["Approved"]["Arguments"]["IfSteps"]] == [
        "Model",
        "EndpointConfig",
        "Endpoint",
    ]


def test_jobs_run_scripts_of_the_bundle() -> None:
    steps = steps_of(definition())
    for name, script in (("Split", "split.py"), ("Embed", "embed.py"), ("Evaluate", "evaluate.py")):
        arguments = steps[name]["Arguments"]
        assert arguments["AppSpecification"]["ContainerEntrypoint"][-1] == f"/opt/ml/processing/input/code/{script}"
        inputs = {each["InputName"]: each["S3Input"]["S3Uri"] for each in arguments["ProcessingInputs"]}
        assert inputs["code"] == f"{CODE}/src"
    tune = steps["Tune"]["Arguments"]["TrainingJobDefinition"]["StaticHyperParameters"]
    for hyperparameters, script in ((steps["Train"]["Arguments"]["HyperParameters"], "train.py"), (tune, "hpo.py")):
        assert hyperparameters["sagemaker_program"] == script
        assert hyperparameters["sagemaker_submit_directory"] == f"{CODE}/sourcedir.tar.gz"
        assert (ROOT / "code" / script).is_file()


def test_the_options_given_are_those_the_scripts_have() -> None:
    steps = steps_of(definition(objective="average test loss"))
    for name, script in (("Split", "split.py"), ("Embed", "embed.py"), ("Evaluate", "evaluate.py")):
        words = steps[name]["Arguments"]["AppSpecification"]["ContainerArguments"]
        source = Path(ROOT / "code" / script).read_text()
        for option in words[::2]:
            side = option.removeprefix("--")
            assert f'"{option}"' in source or (side in contract.SIDES and 'f"--{side}"' in source), option
