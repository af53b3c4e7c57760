"""Conditions, without a service."""

import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.local.conditions import Incomparable, check, evaluate, holds

ORDERS = {
    "GreaterThan": operator.gt,
    "GreaterThanOrEqualTo": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqualTo": operator.le,
    "Equals": operator.eq,
}
NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**40), 2**40)


def compare(kind: str, left: Any, right: Any) -> dict[str, Any]:
    return {"Type": kind, "LeftValue": left, "RightValue": right}


@given(st.sampled_from(sorted(ORDERS)), NUMBERS, NUMBERS, st.booleans(), st.booleans())
def test_numbers_compare_as_numbers_even_as_text(kind: str, left: Any, right: Any, quote: bool, other: bool) -> None:
    expected = ORDERS[kind](float(left), float(right))
    if quote != other:  # one of them is text, as a hyperparameter is
        left, right = (repr(left), right) if quote else (left, repr(right))
    assert evaluate(compare(kind, left, right)) == expected


@given(st.text(), st.text())
def test_texts_compare_as_texts(left: str, right: str) -> None:
    for kind, order in ORDERS.items():
        assert evaluate(compare(kind, left, right)) == order(left, right)


@given(NUMBERS, st.lists(NUMBERS, max_size=4))
def test_in(value: Any, values: list[Any]) -> None:
    condition = {"Type": "In", "QueryValue": value, "Values": values}
    assert evaluate(condition) == (value in values)
    assert evaluate({"Type": "Not", "Condition": condition}) == (value not in values)


@given(st.lists(st.booleans(), max_size=4))
def test_or_and_all(outcomes: list[bool]) -> None:
    conditions = [compare("Equals", outcome, True) for outcome in outcomes]
    assert evaluate({"Type": "Or", "Conditions": conditions}) == any(outcomes)
    assert holds(conditions) == all(outcomes)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (compare("Equals", True, "true"), True),
        (compare("Equals", True, 1), False),
        (compare("Equals", "abc", 1), False),
        (compare("Equals", 1, 1.0), True),
        (compare("LessThanOrEqualTo", float("nan"), 1), False),
        ({"Type": "In", "QueryValue": "Approved", "Values": ["Approved", "Rejected"]}, True),
    ],
)
def test_mixed_types(condition: dict[str, Any], expected: bool) -> None:
    assert evaluate(condition) is expected


@pytest.mark.parametrize("pair", [("abc", 1), (True, False), (True, 1)])
def test_what_has_no_order_is_an_error(pair: tuple[Any, Any]) -> None:
    with pytest.raises(Incomparable, match="can not compare"):
        evaluate(compare("LessThan", *pair))


def test_the_forms_the_sdk_writes() -> None:
    sdk = pytest.importorskip("sagemaker.core.workflow.conditions")
    conditions = [
        (sdk.ConditionEquals("a", "a"), True),
        (sdk.ConditionGreaterThan(2, 1), True),
        (sdk.ConditionGreaterThanOrEqualTo(1, 2), False),
        (sdk.ConditionLessThan(1, 2), True),
        (sdk.ConditionLessThanOrEqualTo(2, 1), False),
        (sdk.ConditionIn("a", ["b"]), False),
        (sdk.ConditionNot(sdk.ConditionEquals(1, 2)), True),
        (sdk.ConditionOr([sdk.ConditionEquals(1, 2), sdk.ConditionEquals(1, 1)]), True),
    ]
    for condition, expected in conditions:
        request = json.loads(json.dumps(condition.to_request()))
        assert list(check(request, "here")) == []
        assert evaluate(request) is expected


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"Type": "Near"}, "its Type must be one of"),
        ("x", "is not a condition"),
        ({"Type": "Equals", "LeftValue": 1}, "needs exactly LeftValue, RightValue"),
        ({"Type": "Or", "Conditions": {}}, "needs a list"),
        ({"Type": "Not", "Condition": {"Type": "No"}}, "here.Condition"),
        ({"Type": "Or", "Conditions": [{"Type": "No"}]}, r"here.Conditions[0]"),
    ],
)
def test_malformed_conditions_are_placed(condition: Any, words: str) -> None:
    (message,) = check(condition, "here")
    assert words in message
