"""SageMaker's API as botocore describes it, checked strictly.

botocore's own `ParamValidator` checks types, required and unknown fields and minima, but neither enums, patterns nor
maxima; AWS checks them all. This module reads the same model (it ships inside botocore: no network) and checks
everything it says, for requests, for answers, and for the `Arguments` of a pipeline step, where a value may also be a
pipeline variable that is only known at run time.

    >>> validate("CreateTrainingJob", {"TrainingJobName": "a_b"})
    ["'OutputDataConfig' is required", "'TrainingJobName': 'a_b' does not match the pattern ...", ...]
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Step type -> the API call it becomes, and the name AWS makes up when the step's Arguments leave it out.
STEP_OPERATIONS: dict[str, tuple[str, str | None]] = {
    "Processing": ("CreateProcessingJob", "ProcessingJobName"),
    "Training": ("CreateTrainingJob", "TrainingJobName"),
    "Tuning": ("CreateHyperParameterTuningJob", "HyperParameterTuningJobName"),
    "RegisterModel": ("CreateModelPackage", None),
    "Model": ("CreateModel", "ModelName"),
    "EndpointConfig": ("CreateEndpointConfig", "EndpointConfigName"),
    "Endpoint": ("CreateEndpoint", "EndpointName"),
}
# Step type -> the call whose answer the step's properties (`Steps.NAME.…`) are read from.
STEP_PROPERTIES: dict[str, str] = {
    "Processing": "DescribeProcessingJob",
    "Training": "DescribeTrainingJob",
    "Tuning": "DescribeHyperParameterTuningJob",
    "RegisterModel": "DescribeModelPackage",
    "Model": "DescribeModel",
    "EndpointConfig": "DescribeEndpointConfig",
    "Endpoint": "DescribeEndpoint",
}
EXECUTION_VARIABLES = (
    "PipelineName",
    "PipelineArn",
    "PipelineExecutionId",
    "PipelineExecutionArn",
    "StartDateTime",
    "CurrentDateTime",
)

_VARIABLES = ("Get", "Std:Join", "Std:JsonGet")
_GET = re.compile(r"Parameters\.[A-Za-z0-9\-_]+|Execution\.[A-Za-z]+|Steps\.[A-Za-z0-9\-_]+(?:\.|\[).+")
_SHOWN = 120  # characters of an offending value worth repeating in a message


@functools.cache
def _model() -> Any:
    import botocore.session  # 0.1 s: only paid by those who validate

    return botocore.session.get_session().get_service_model("sagemaker")


def knows(operation: str) -> bool:
    """Whether SageMaker has an operation of this name at all."""
    return operation in _model().operation_names


def validate(operation: str, params: Any, allow_variables: bool = False) -> list[str]:
    """Everything that is wrong with a request, one message an offence; empty when it is valid.

    Args:
        operation: such as `CreateTrainingJob`.
        params: the request as JSON gives it (timestamps as numbers or strings).
        allow_variables: let `{"Get": …}`, `{"Std:Join": …}` and `{"Std:JsonGet": …}` stand for any value; their own
            form is checked instead.
    """
    return list(_check(_model().operation_model(operation).input_shape, params, "", allow_variables))


def validate_answer(operation: str, answer: Any) -> list[str]:
    """Everything that is wrong with an answer to `operation`."""
    shape = _model().operation_model(operation).output_shape
    return list(_check(shape, answer, "", False)) if shape else []


def check_step(step: Mapping[str, Any]) -> list[str]:
    """What AWS would refuse in the `Arguments` of a step of a definition; condition and fail steps have no API call."""
    if step["Type"] not in STEP_OPERATIONS:
        return []
    operation, name = STEP_OPERATIONS[step["Type"]]
    arguments = step.get("Arguments", {})
    if name and isinstance(arguments, Mapping):
        arguments = {name: "placeholder", **arguments}
    return validate(operation, arguments, allow_variables=True)


def is_variable(value: Any) -> bool:
    """Whether `value` is a pipeline variable: known only at run time."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in _VARIABLES


def check_variable(value: Mapping[str, Any], place: str) -> Iterator[str]:
    """What is wrong with the form of a pipeline variable. Whether what it names exists is not asked here."""
    kind, body = next(iter(value.items()))
    if kind == "Get":
        if not isinstance(body, str) or not _GET.fullmatch(body):
            yield f"'{place}': {body!r} is not a reference: expected Parameters.NAME, Execution.NAME or Steps.NAME.PATH"
        elif body.startswith("Execution.") and body.removeprefix("Execution.") not in EXECUTION_VARIABLES:
            yield f"'{place}': {body!r} is not an execution variable: expected one of {', '.join(EXECUTION_VARIABLES)}"
    elif kind == "Std:Join":
        if not isinstance(body, Mapping) or set(body) != {"On", "Values"} or not isinstance(body["On"], str):
            yield f"'{place}': Std:Join needs exactly 'On' (a string) and 'Values' (a list), not {_show(body)}"
        elif not isinstance(body["Values"], list):
            yield f"'{place}': Std:Join needs a list of 'Values', not {_show(body['Values'])}"
        else:
            for index, item in enumerate(body["Values"]):
                if is_variable(item):
                    yield from check_variable(item, f"{place}.Values[{index}]")
                elif not isinstance(item, str | int | float):
                    yield f"'{place}.Values[{index}]': {_show(item)} can not be joined: expected text or a number"
    else:
        sources = {"PropertyFile", "S3Uri"} & set(body) if isinstance(body, Mapping) else set()
        if len(sources) != 1 or set(body) != sources | {"Path"} or not isinstance(body["Path"], str):
            yield f"'{place}': Std:JsonGet needs 'Path' and either 'PropertyFile' or 'S3Uri', not {_show(body)}"
        elif is_variable(body[source := sources.pop()]):
            yield from check_variable(body[source], f"{place}.{source}")
        elif source == "PropertyFile" or not isinstance(body[source], str):
            yield f"'{place}.{source}': {_show(body[source])} is not a reference"


def check_property(step_type: str, tokens: list[str | int]) -> str | None:
    """Why a property path of a step can not exist, or None when the API's answer has it.

    Args:
        step_type: such as `Training`.
        tokens: the path, such as `["ModelArtifacts", "S3ModelArtifacts"]`; numbers index lists.
    """
    shape = _model().operation_model(STEP_PROPERTIES[step_type]).output_shape
    for token in tokens:
        if shape.type_name == "structure" and isinstance(token, str):
            if token not in shape.members:
                return f"{shape.name} has no {token!r}: expected one of {', '.join(sorted(shape.members))}"
            shape = shape.members[token]
        elif shape.type_name == "map":
            shape = shape.value
        elif shape.type_name == "list":  # by position, or by the item's own name: Outputs['train']
            shape = shape.member
        else:
            return f"{shape.name} is a {shape.type_name} and has no {token!r}"
    return None


def coerce(operation: str, params: Any) -> Any:
    """Give resolved pipeline variables the type the request wants, as SageMaker Pipelines does.

    A number where text is wanted becomes text (`HyperParameters`), and text where a number is wanted becomes one if it
    reads as one. Anything else is left for `validate` to refuse.
    """
    return _coerce(_model().operation_model(operation).input_shape, params)


def trim(operation: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `document` that the answer of `operation` has room for; what we keep beside it stays at home."""
    shape = _model().operation_model(operation).output_shape
    trimmed: dict[str, Any] = _trim(shape, document) if shape else {}
    return trimmed


def _trim(shape: Any, value: Any) -> Any:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        return {name: _trim(shape.members[name], item) for name, item in value.items() if name in shape.members}
    if shape.type_name == "list" and isinstance(value, list):
        return [_trim(shape.member, item) for item in value]
    return value


# --- the checks ---------------------------------------------------------------------------------------------------


def _check(shape: Any, value: Any, place: str, variables: bool) -> Iterator[str]:
    if variables and is_variable(value):
        yield from check_variable(value, place)
        return
    wrong = _wrong_type(shape, value)
    if wrong:
        yield f"'{place or shape.name}': {_show(value)} is not {wrong}"
        return
    yield from _bounds(shape, value, place)
    if shape.type_name == "structure":
        yield from _structure(shape, value, place, variables)
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            yield from _check(shape.member, item, f"{place}[{index}]", variables)
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from _check(shape.key, key, f"{place} (key)", False)
            yield from _check(shape.value, item, f"{place}.{key}" if place else key, variables)
    elif shape.type_name == "string":
        yield from _text(shape, value, place)


def _wrong_type(shape: Any, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match shape.type_name:
        case "structure" | "map":
            fits, wanted = isinstance(value, Mapping), "an object"
        case "list":
            fits, wanted = isinstance(value, list | tuple), "a list"
        case "string":
            fits, wanted = isinstance(value, str), "text"
        case "integer" | "long":
            fits, wanted = number and isinstance(value, int), "a whole number"
        case "float" | "double":
            fits, wanted = number, "a number"
        case "boolean":
            fits, wanted = isinstance(value, bool), "true or false"
        case _:  # timestamp, blob: JSON carries them as a number or as text
            fits, wanted = number or isinstance(value, str), f"a {shape.type_name}"
    return None if fits else wanted


def _structure(shape: Any, value: Mapping[str, Any], place: str, variables: bool) -> Iterator[str]:
    def inside(name: str) -> str:
        return f"{place}.{name}" if place else name

    for name in shape.required_members:
        if name not in value:
            yield f"'{inside(name)}' is required"
    for name, item in value.items():
        if name not in shape.members:
            yield f"'{inside(name)}' is unknown: {shape.name} has {', '.join(sorted(shape.members))}"
        else:
            yield from _check(shape.members[name], item, inside(name), variables)
    if getattr(shape, "is_tagged_union", False) and len(value) != 1:
        yield f"'{place}' needs exactly one of {', '.join(sorted(shape.members))}, not {len(value)}"


def _bounds(shape: Any, value: Any, place: str) -> Iterator[str]:
    sized = isinstance(value, str | list | tuple | Mapping)
    size = len(value) if sized else value
    what = {"string": "characters", "list": "items", "map": "entries"}.get(shape.type_name, "") if sized else ""
    for bound, beyond in (("min", "less than the minimum"), ("max", "more than the maximum")):
        limit = shape.metadata.get(bound)
        if limit is not None and isinstance(size, int | float) and (size < limit if bound == "min" else size > limit):
            yield f"'{place}': {f'{size} {what}' if what else size} is {beyond} {limit}"


def _text(shape: Any, value: str, place: str) -> Iterator[str]:
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        yield f"'{place}': {_show(value)} is not one of {_choices(value, allowed)}"
    pattern = shape.metadata.get("pattern")
    if not pattern or len(value) > shape.metadata.get("max", len(value)):  # too long is said already
        return
    expression = _compile(pattern)
    if expression and not expression.fullmatch(value):
        yield f"'{place}': {_show(value)} does not match the pattern {pattern}"


@functools.cache
def _compile(pattern: str) -> re.Pattern[str] | None:
    """The model's patterns are Java's: classes Python lacks are widened; what it can not read is not checked."""
    pattern = pattern.replace(r"\p{L}", r"\w").replace(r"\p{N}", r"\w").replace(r"\p{Z}", r"\s")
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _choices(value: str, allowed: list[str]) -> str:
    """All the choices when they are few, else those that resemble `value` most (there are 600 instance types)."""
    if len(allowed) <= 12:
        return ", ".join(allowed)
    import difflib

    near = difflib.get_close_matches(value, allowed, n=3, cutoff=0.4)
    return f"the {len(allowed)} allowed values" + (f" (near: {', '.join(near)})" if near else "")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _coerce(shape: Any, value: Any) -> Any:
    match shape.type_name:
        case "structure" if isinstance(value, Mapping):
            return {k: _coerce(shape.members[k], v) if k in shape.members else v for k, v in value.items()}
        case "map" if isinstance(value, Mapping):
            return {k: _coerce(shape.value, v) for k, v in value.items()}
        case "list" if isinstance(value, list | tuple):
            return [_coerce(shape.member, item) for item in value]
        case "string" if isinstance(value, int | float):
            return as_text(value)
        case "integer" | "long" if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
            return int(value)
        case "float" | "double" if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        case "boolean" if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    return value


def as_text(value: str | int | float | bool) -> str:
    """A value as SageMaker Pipelines writes it into text: `true`, `3`, `0.5`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
