"""Pipeline variables, without a service."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.local.references import Scope, Unresolved, follow, gets, step_of, tokens
from pipelines.service_model import as_text
from tests.local.definitions import get, join, json_get

PROPERTIES = {
    "Train": {"ModelArtifacts": {"S3ModelArtifacts": "s3://b/model.tar.gz"}},
    "Tune": {"BestTrainingJob": {"TunedHyperParameters": {"lr": "0.1", "batch-size": "32"}}},
    "Split": {
        "ProcessingOutputConfig": {
            "Outputs": [
                {"OutputName": "train", "S3Output": {"S3Uri": "s3://b/train"}},
                {"OutputName": "test", "S3Output": {"S3Uri": "s3://b/test"}},
            ]
        }
    },
}
REPORT = {"metrics": {"loss": {"value": 0.5}, "classes": ["a", "b"], "a.b": 1, "none": None}}
SCOPE = Scope(
    parameters={"Epochs": 3, "Name": "x", "On": True},
    execution={"PipelineName": "p"},
    properties=lambda name: PROPERTIES[name],
    property_file=lambda step, name: f"s3://b/{step}/{name}.json",
    read=lambda uri: json.dumps(REPORT).encode() if uri == "s3://b/Evaluate/R.json" else b"{",
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (get("Parameters.Epochs"), 3),
        (get("Execution.PipelineName"), "p"),
        (get("Steps.Train.ModelArtifacts.S3ModelArtifacts"), "s3://b/model.tar.gz"),
        (get("Steps.Tune.BestTrainingJob.TunedHyperParameters['batch-size']"), "32"),
        (get("Steps.Split.ProcessingOutputConfig.Outputs['test'].S3Output.S3Uri"), "s3://b/test"),
        (get("Steps.Split.ProcessingOutputConfig.Outputs[0].S3Output.S3Uri"), "s3://b/train"),
        (join("a", get("Parameters.Epochs"), get("Parameters.On"), 0.5, on="/"), "a/3/true/0.5"),
        (join(join("a", "b", on="-"), "c", on="/"), "a-b/c"),
        (json_get("Evaluate", "R", "metrics.loss.value"), 0.5),
        (json_get("Evaluate", "R", "$.metrics['loss'].value"), 0.5),
        (json_get("Evaluate", "R", "metrics.classes[1]"), "b"),
        (json_get("Evaluate", "R", "metrics['a.b']"), 1),
        ({"deep": [{"er": get("Parameters.Name")}]}, {"deep": [{"er": "x"}]}),
    ],
)
def test_resolves(value: Any, expected: Any) -> None:
    assert SCOPE.resolve(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (get("Parameters.Missing"), "Parameters.Missing has no value"),
        (get("Steps.Train.ModelArtifacts.S3"), "there is no 'S3'"),
        (get("Steps.Split.ProcessingOutputConfig.Outputs['valid'].S3Output.S3Uri"), "'valid'"),
        (get("Steps.Split.ProcessingOutputConfig.Outputs[2]"), "there is no 2"),
        (json_get("Evaluate", "R", "metrics.accuracy"), "nothing at 'metrics.accuracy'"),
        (json_get("Evaluate", "R", "metrics.loss"), "not a single value"),
        (json_get("Evaluate", "R", "metrics.none"), "not a single value"),
        (json_get("Evaluate", "Broken", "a"), "is not JSON"),
        (json_get("Evaluate", "R", "metrics["), "can not be read"),
        (join(get("Steps.Tune.BestTrainingJob")), "is not text or a number"),
    ],
)
def test_says_what_leads_nowhere(value: Any, words: str) -> None:
    with pytest.raises(Unresolved) as caught:
        SCOPE.resolve(value)
    assert words in str(caught.value)


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="'"), min_size=1, max_size=8)
SCALARS = st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False), st.booleans())
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@given(st.lists(KEYS | st.integers(0, 3), min_size=1, max_size=6), SCALARS)
def test_a_path_leads_to_what_was_put_there(path: list[Any], value: Any) -> None:
    document: Any = value
    for token in reversed(path):
        document = {token: document} if isinstance(token, str) else [None] * token + [document]
    written = "".join(f"['{token}']" if isinstance(token, str) else f"[{token}]" for token in path)
    assert tokens(written) == path
    assert follow(document, tokens(written)) == value


@given(JSON)
def test_values_without_variables_stay_as_they_are(value: Any) -> None:
    assert SCOPE.resolve({"v": value}) == {"v": value}
    assert list(gets({"v": value})) == []


@given(st.lists(SCALARS, max_size=5), st.text(max_size=3))
def test_join_is_the_joined_text(values: list[Any], on: str) -> None:
    assert SCOPE.resolve(join(*values, on=on)) == on.join(as_text(value) for value in values)


def test_all_references_are_found() -> None:
    value = {"a": [join(get("Steps.A.B"), "x")], "c": json_get("D", "F", "p"), "e": get("Parameters.P")}
    assert list(gets(value)) == ["Steps.A.B", "Steps.D.PropertyFiles.F", "Parameters.P"]
    assert step_of("Steps.A-b_c.D['e'].F") == ("A-b_c", "D['e'].F")
    assert step_of("Parameters.P") is None
