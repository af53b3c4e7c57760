"""The strict validator: one valid request, and one offence of every kind."""

import copy
from typing import Any

import pytest

from pipelines.service_model import check_property, check_step, coerce, knows, trim, validate, validate_answer

GOOD: dict[str, Any] = {
    "TrainingJobName": "job",
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "RoleArn": "arn:aws:iam::123456789012:role/r",
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "HyperParameters": {"lr": "0.1"},
    "Tags": [{"Key": "team", "Value": "vision"}],
    "InputDataConfig": [
        {"ChannelName": "train", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/t"}}}
    ],
}


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """GOOD with one value replaced, or left out if `value` is None."""
    request = copy.deepcopy(GOOD)
    inside: Any = request
    for key in path[:-1]:
        inside = inside[key]
    if value is None:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return request


def test_a_valid_request_has_no_offence() -> None:
    assert validate("CreateTrainingJob", GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["RoleArn"], None, ["'RoleArn'", "required"]),
        (["ResourceConfig", "VolumeSize"], 1, ["'ResourceConfig.VolumeSize'", "unknown", "VolumeSizeInGB"]),
        (["ResourceConfig", "InstanceCount"], "1", ["'ResourceConfig.InstanceCount'", "'1'", "whole number"]),
        (["ResourceConfig", "InstanceCount"], True, ["True", "whole number"]),
        (["ResourceConfig", "InstanceCount"], 1.5, ["1.5", "whole number"]),
        (["HyperParameters", "lr"], 0.1, ["'HyperParameters.lr'", "0.1", "text"]),
        (["HyperParameters"], ["lr"], ["an object"]),
        (["InputDataConfig"], {}, ["a list"]),
        (["EnableManagedSpotTraining"], "yes", ["'yes'", "true or false"]),
        (["ResourceConfig", "InstanceCount"], -1, ["-1", "less than the minimum 0"]),
        (["OutputDataConfig", "S3OutputPath"], "s3://" + "b" * 1100, ["1105 characters", "maximum 1024"]),
        (["HyperParameters"], {f"k{n}": "1" for n in range(101)}, ["101 entries", "maximum 100"]),
        (["Tags"], [{"Key": f"k{n}", "Value": ""} for n in range(51)], ["51 items", "maximum 50"]),
        (["ResourceConfig", "InstanceType"], "ml.m5.xlargo", ["'ml.m5.xlargo'", "near: ml.m5.xlarge"]),
        (["AlgorithmSpecification", "TrainingInputMode"], "Files", ["one of Pipe, File, FastFile"]),
        (["TrainingJobName"], "a_b", ["'a_b'", "pattern"]),
        (["TrainingJobName"], "job\n", ["pattern"]),
        (["OutputDataConfig", "S3OutputPath"], "/out", ["'/out'", "pattern"]),
        (["Tags"], [{"Key": "a|b", "Value": ""}], ["'Tags[0].Key'", "pattern"]),
    ],
)
def test_every_kind_of_offence_is_found_and_placed(path: list[Any], value: Any, words: list[str]) -> None:
    (message,) = validate("CreateTrainingJob", changed(path, value))
    assert [word for word in words if word not in message] == []


def test_too_short_and_too_long_names() -> None:
    assert (
        "0 characters is less than the minimum 1" in validate("CreateTrainingJob", changed(["TrainingJobName"], ""))[0]
    )
    messages = validate("CreateTrainingJob", changed(["TrainingJobName"], "a" * 64))
    assert messages == ["'TrainingJobName': 64 characters is more than the maximum 63"]


def test_all_offences_are_reported_at_once() -> None:
    assert len(validate("CreateTrainingJob", {"TrainingJobName": "a_b", "Colour": "blue"})) == 4


VARIABLES = [
    {"Get": "Parameters.Count"},
    {"Get": "Steps.Tune.BestTrainingJob.TunedHyperParameters['lr']"},
    {"Std:Join": {"On": "/", "Values": ["s3:/", {"Get": "Execution.PipelineExecutionId"}, 1]}},
    {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.Report"}, "Path": "a.b"}},
]


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    "path", [["ResourceConfig", "InstanceType"], ["ResourceConfig", "InstanceCount"], ["HyperParameters", "lr"]]
)
def test_variables_stand_for_any_value_in_a_definition_only(variable: dict[str, Any], path: list[Any]) -> None:
    request = changed(path, variable)
    assert validate("CreateTrainingJob", request, allow_variables=True) == []
    assert validate("CreateTrainingJob", request) != []


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ({"Get": "Params.Count"}, "'Params.Count' is not a reference"),
        ({"Get": "Steps.Tune"}, "is not a reference"),
        ({"Get": 3}, "3 is not a reference"),
        ({"Get": "Execution.Id"}, "expected one of PipelineName"),
        ({"Std:Join": {"Values": []}}, "needs exactly 'On'"),
        ({"Std:Join": {"On": "", "Values": "ab"}}, "needs a list"),
        ({"Std:Join": {"On": "", "Values": [["a"]]}}, "can not be joined"),
        ({"Std:Join": {"On": "", "Values": [{"Get": "x"}]}}, "'x' is not a reference"),
        ({"Std:JsonGet": {"Path": "a"}}, "either 'PropertyFile' or 'S3Uri'"),
        ({"Std:JsonGet": {"PropertyFile": "Report", "Path": "a"}}, "is not a reference"),
    ],
)
def test_the_form_of_a_variable_is_checked(variable: dict[str, Any], words: str) -> None:
    (message,) = validate("CreateTrainingJob", changed(["RoleArn"], variable), allow_variables=True)
    assert words in message


def test_a_step_needs_no_name_for_its_job() -> None:
    arguments = {key: value for key, value in GOOD.items() if key != "TrainingJobName"}
    assert check_step({"Type": "Training", "Arguments": arguments}) == []
    assert check_step({"Type": "Training", "Arguments": {**arguments, "Colour": 1}}) != []
    assert check_step({"Type": "Fail", "Arguments": {"ErrorMessage": "x"}}) == []


@pytest.mark.parametrize(
    ("kind", "offence"),
    [
        ("Processing", {"AppSpecification": {}}),
        ("Tuning", {"HyperParameterTuningJobConfig": {"Strategy": "Guess"}}),
        ("RegisterModel", {"ModelApprovalStatus": "Perhaps"}),
        ("Model", {"PrimaryContainer": "image"}),
        ("EndpointConfig", {"ProductionVariants": []}),
        ("Endpoint", {}),
    ],
)
def test_every_step_type_is_checked(kind: str, offence: dict[str, Any]) -> None:
    assert check_step({"Type": kind, "Arguments": offence}) != []


def test_operations() -> None:
    assert knows("CreateTrainingJob")
    assert not knows("BakeBread")


def test_answers_are_trimmed_to_what_the_model_has_room_for() -> None:
    kept = {"PipelineArn": "arn:aws:sagemaker:us-east-1:000000000000:pipeline/p", "PipelineName": "p"}
    document = {"PipelineSummaries": [{**kept, "Version": 3}], "Secret": 1}
    answer = trim("ListPipelines", document)
    assert answer == {"PipelineSummaries": [kept]}
    assert validate_answer("ListPipelines", answer) == []
    assert validate_answer("ListPipelines", document) != []


def test_resolved_values_get_the_type_the_request_wants() -> None:
    request = {
        "HyperParameters": {"epochs": 2, "lr": 0.5, "flag": True, "text": "x"},
        "ResourceConfig": {"InstanceCount": "2"},
        "EnableManagedSpotTraining": "True",
    }
    assert coerce("CreateTrainingJob", request) == {
        "HyperParameters": {"epochs": "2", "lr": "0.5", "flag": "true", "text": "x"},
        "ResourceConfig": {"InstanceCount": 2},
        "EnableManagedSpotTraining": True,
    }
    assert coerce("CreateTrainingJob", {"ResourceConfig": {"InstanceCount": "two"}})["ResourceConfig"] == {
        "InstanceCount": "two"
    }


def test_property_paths() -> None:
    assert check_property("Training", ["ModelArtifacts", "S3ModelArtifacts"]) is None
    assert check_property("Processing", ["ProcessingOutputConfig", "Outputs", "train", "S3Output", "S3Uri"]) is None
    assert check_property("Tuning", ["BestTrainingJob", "TunedHyperParameters", "lr"]) is None
    assert "S3ModelArtifacts" in str(check_property("Training", ["ModelArtifacts", "S3Model"]))
    assert "has no" in str(check_property("Training", ["TrainingJobName", "x"]))
