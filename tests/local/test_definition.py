"""What CreatePipeline refuses, and how a definition is laid out."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.local.definition import Definition, Invalid, parse
from tests.local.definitions import Clients, get, json_get, pipeline, processing


def gate(name: str, then: list[Any], otherwise: list[Any], *conditions: Any, **more: Any) -> dict[str, Any]:
    arguments = {"Conditions": list(conditions), "IfSteps": then, "ElseSteps": otherwise}
    return {"Name": name, "Type": "Condition", "Arguments": arguments, **more}


def equal(left: Any, right: Any = 1) -> dict[str, Any]:
    return {"Type": "Equals", "LeftValue": left, "RightValue": right}


A, B = processing("A", "pass"), processing("B", "pass")
OUTPUT = "ProcessingOutputConfig.Outputs['o'].S3Output.S3Uri"


def refers(name: str, path: str) -> dict[str, Any]:
    return processing(name, "pass", {"x": get(path)})


def bad_argument() -> dict[str, Any]:
    step = processing("A", "pass")
    step["Arguments"]["RoleArn"] = "nobody"
    return step


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([A, A], ["unique", "'A' is there twice"]),
        ([A, gate("G", [A], [], equal(1))], ["'A' is there twice"]),
        ([], ["at least one step"]),
        ([{**A, "Type": "Lambda"}], ["Steps[0]", "'Lambda'", "not supported"]),
        ([{**A, "Name": "a b"}], ["Steps[0]", "Name"]),
        ([{"Name": "A", "Type": "Training"}], ["needs Arguments"]),
        ([bad_argument()], ["Steps[0].Arguments", "'A'", "'RoleArn'", "minimum 20"]),
        ([gate("G", [bad_argument()], [], equal(1))], ["Steps[0].IfSteps[0].Arguments"]),
        ([{**A, "DependsOn": ["Z"]}], ["'A' depends on 'Z'", "does not exist"]),
        ([{**A, "DependsOn": ["B"]}, {**B, "DependsOn": ["A"]}], ["circle", "A, B"]),
        ([{**A, "DependsOn": ["A"]}], ["circle"]),
        ([refers("A", f"Steps.B.{OUTPUT}"), refers("B", f"Steps.A.{OUTPUT}")], ["circle"]),
        ([{**A, "DependsOn": ["G"]}, gate("G", [{**B, "DependsOn": ["A"]}], [], equal(1))], ["circle"]),
        ([refers("A", f"Steps.Z.{OUTPUT}")], ["Steps.Z.", "there is no step 'Z'"]),
        ([A, refers("B", "Steps.A.ModelArtifacts.S3")], ["'ModelArtifacts'", "expected one of"]),
        ([refers("A", "Parameters.Gone")], ["Parameters.Gone", "not declared"]),
        ([refers("A", "Execution.Gone")], ["Execution.Gone"]),
        ([A, gate("G", [], [], equal(json_get("A", "R", "x")))], ["PropertyFiles.R", "does not declare"]),
        ([gate("G", [], [], {"Type": "Near"})], ["Steps[0].Conditions[0]", "Near"]),
        ([gate("G", [gate("H", [], [], equal(1))], [], equal(1))], ["no condition step within a condition"]),
        ([{"Name": "F", "Type": "Fail", "Arguments": {}}], ["'F'", "ErrorMessage"]),
        (
            [{"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}, refers("A", "Steps.F.x")],
            ["no properties"],
        ),
        ([A, {**B, "PropertyFiles": [{"OutputName": "x"}]}], ["property file needs"]),
        ([{**A, "CacheConfig": {"Enabled": True, "ExpireAfter": "soon"}}], ["'A'", "'soon'", "ISO 8601", "P30D"]),
        ([{**A, "CacheConfig": {"Enabled": False, "ExpireAfter": "PT"}}], ["'PT'"]),
        ([{**A, "CacheConfig": {"Enabled": True}}], ["needs ExpireAfter"]),
        ([{**A, "CacheConfig": {"Enabled": "yes"}}], ["Enabled", "'yes'"]),
        ([{**A, "CacheConfig": {"Enabled": False, "Expires": "P1D"}}], ["not Expires"]),
        ([gate("G", [{**A, "CacheConfig": None}], [], equal(1))], ["Steps[0].IfSteps[0]", "CacheConfig"]),
    ],
)
def test_wrong_steps_are_refused_and_named(steps: list[Any], words: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        parse(json.dumps(pipeline(steps)))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON object"),
        ("{}", "Version is None"),
        (json.dumps({"Version": "2020-12-01", "Steps": {}}), "Steps must be a list"),
        (json.dumps(pipeline([A], [{"Name": "P", "Type": "Number"}])), "'Number'"),
        (json.dumps(pipeline([A], [{"Name": "P", "Type": "Integer", "DefaultValue": "1"}])), "'1'"),
        (json.dumps(pipeline([A], [{"Name": "P", "Type": "Integer", "DefaultValue": True}])), "True"),
        (json.dumps(pipeline([A], [{"Name": "P", "Type": "String"}] * 2)), "'P' is there twice"),
        (json.dumps(pipeline([A], [{"Name": "P", "Type": "String", "DefaultValue": "c", "EnumValues": ["a"]}])), "'c'"),
        (json.dumps(pipeline([A], [{"Type": "String"}])), "needs a Name"),
    ],
)
def test_wrong_documents_are_refused(text: str, words: str) -> None:
    with pytest.raises(Invalid, match="Unable to parse pipeline definition") as caught:
        parse(text)
    assert words in str(caught.value)


def test_what_a_step_waits_for() -> None:
    steps = [
        processing("A", "pass", outputs={"o": "s3://b/o"}),
        gate("G", [{**B, "DependsOn": ["A"]}], [processing("C", "pass")], equal(get("Parameters.P"))),
        {**refers("D", f"Steps.A.{OUTPUT}"), "DependsOn": ["G"]},
    ]
    laid_out: Definition = parse(json.dumps(pipeline(steps, [{"Name": "P", "Type": "Integer", "DefaultValue": 1}])))
    needs = {name: laid_out.needs(name) for name in laid_out.steps}
    assert needs == {"A": set(), "G": set(), "B": {"G", "A"}, "C": {"G"}, "D": {"A", "G", "B", "C"}}


@pytest.mark.parametrize("change", ["create_pipeline", "update_pipeline"])
def test_the_service_refuses_a_wrong_definition(clients: Clients, change: str) -> None:
    clients.wait(clients.start(pipeline([A]), "refusing"))
    call: Callable[..., Any] = getattr(clients.sm, change)
    role = {"RoleArn": "arn:aws:iam::000000000000:role/r"} if change == "create_pipeline" else {}
    name = "refusing-new" if change == "create_pipeline" else "refusing"
    with pytest.raises(clients.sm.exceptions.ClientError, match="there twice") as caught:
        call(PipelineName=name, PipelineDefinition=json.dumps(pipeline([A, A])), **role)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    kept = json.loads(clients.sm.describe_pipeline(PipelineName="refusing")["PipelineDefinition"])
    assert kept == pipeline([A])
