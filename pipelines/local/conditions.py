"""Conditions of a condition step, evaluated on resolved values."""

from collections.abc import Iterator, Mapping
from typing import Any

Value = str | int | float | bool

_COMPARISONS = {
    "GreaterThan": lambda left, right: left > right,
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThan": lambda left, right: left < right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
}
TYPES = ("Equals", *_COMPARISONS, "In", "Not", "Or")


class Incomparable(Exception):
    """Two values that have no order between them; the message shows both."""


def holds(conditions: list[Mapping[str, Any]]) -> bool:
    """Whether all of them are true: what a condition step asks."""
    return all(evaluate(condition) for condition in conditions)


def evaluate(condition: Mapping[str, Any]) -> bool:
    """One condition in the JSON form `sagemaker.core.workflow.conditions` writes, its variables resolved.

    Raises:
        Incomparable: text against a number, or anything but two numbers or two texts in an order.
    """
    kind = condition["Type"]
    if kind == "Not":
        return not evaluate(condition["Condition"])
    if kind == "Or":
        return any(evaluate(item) for item in condition["Conditions"])
    if kind == "In":
        return any(_equal(condition["QueryValue"], value) for value in condition["Values"])
    if kind == "Equals":
        return _equal(condition["LeftValue"], condition["RightValue"])
    left, right = _alike(condition["LeftValue"], condition["RightValue"])
    if type(left) is not type(right) or isinstance(left, bool):
        raise Incomparable(f"{kind} can not compare {left!r} with {right!r}: expected two numbers")
    return bool(_COMPARISONS[kind](left, right))


def _equal(left: Value, right: Value) -> bool:
    left, right = _alike(left, right)
    return type(left) is type(right) and left == right


def _alike(left: Value, right: Value) -> tuple[Value, Value]:
    """Two values in a form that compares: numbers as floats, and text that reads as a number beside a number.

    Hyperparameters and metrics reach a condition as text ("0.1"), parameters as what they were declared to be.
    """
    return _beside(left, right), _beside(right, left)


def _beside(value: Value, other: Value) -> Value:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value) if abs(value) < 2**53 or isinstance(value, float) else value
    if isinstance(other, bool) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(other, int | float) and not isinstance(other, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def check(condition: Any, place: str) -> Iterator[str]:
    """What is wrong with the form of a condition, before anything is resolved."""
    if not isinstance(condition, Mapping) or condition.get("Type") not in TYPES:
        yield f"{place}: {condition!r} is not a condition: its Type must be one of {', '.join(TYPES)}"
        return
    kind = condition["Type"]
    needed = {"Not": {"Condition"}, "Or": {"Conditions"}, "In": {"QueryValue", "Values"}}.get(
        kind, {"LeftValue", "RightValue"}
    )
    if set(condition) != needed | {"Type"}:
        given = ", ".join(sorted(set(condition) - {"Type"}))
        yield f"{place}: {kind} needs exactly {', '.join(sorted(needed))}, not {given}"
    elif kind == "Not":
        yield from check(condition["Condition"], f"{place}.Condition")
    elif kind in ("Or", "In") and not isinstance(condition["Conditions" if kind == "Or" else "Values"], list):
        yield f"{place}: {kind} needs a list"
    elif kind == "Or":
        for index, item in enumerate(condition["Conditions"]):
            yield from check(item, f"{place}.Conditions[{index}]")
