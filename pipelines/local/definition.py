"""A pipeline definition: read, checked as AWS checks it at CreatePipeline, and laid out as a graph of steps."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.local import caching, conditions, references
from pipelines.service_model import (
    STEP_OPERATIONS,
    as_text,
    check_property,
    check_step,
    check_variable,
    is_variable,
)

SCHEMA = "2020-12-01"
STEP_TYPES = (*STEP_OPERATIONS, "Condition", "Fail")
_NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")
_TYPES: dict[str, type | tuple[type, ...]] = {"String": str, "Integer": int, "Float": (int, float), "Boolean": bool}


class Invalid(Exception):
    """What AWS answers with a ValidationException; the message names the place, the value and what was expected."""


@dataclass(frozen=True)
class Parameter:
    """A declared parameter of the pipeline."""

    name: str
    type: str
    default: Any = None
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value that StartPipelineExecution's text stands for.

        Raises:
            Invalid: naming the parameter, the value and the type.
        """
        value: Any = text
        try:
            if self.type == "Integer":
                value = int(text)
            elif self.type == "Float":
                value = float(text)
            elif self.type == "Boolean":
                value = {"true": True, "false": False}[text.lower()]
        except (ValueError, KeyError):
            raise Invalid(f"Parameter [{self.name}] has the value {text!r}, which is not of type {self.type}") from None
        if self.choices and text not in self.choices:
            raise Invalid(f"Parameter [{self.name}] has the value {text!r}: expected one of {', '.join(self.choices)}")
        return value


@dataclass(frozen=True)
class Step:
    """One step. `branch` is where it stands when it belongs to a condition: its name and IfSteps or ElseSteps."""

    name: str
    type: str
    arguments: Mapping[str, Any]
    depends_on: tuple[str, ...] = ()
    property_files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Property file -> (output name, path within the output)."""
    branch: tuple[str, str] | None = None
    display: Mapping[str, str] = field(default_factory=dict)
    """StepDisplayName and StepDescription, when given."""
    expire_after: str | None = None
    """How old an earlier run may be to be reused; None where caching is off."""

    @property
    def own_arguments(self) -> Any:
        """What this step itself resolves: a condition's conditions, without the steps in its branches."""
        return self.arguments["Conditions"] if self.type == "Condition" else self.arguments

    @property
    def referred(self) -> set[str]:
        """The steps whose properties or property files it uses."""
        return {found[0] for get in references.gets(self.own_arguments) if (found := references.step_of(get))}


@dataclass(frozen=True)
class Definition:
    """A whole definition; `steps` in the order written, those in branches after their condition."""

    parameters: Mapping[str, Parameter]
    steps: Mapping[str, Step]

    def needs(self, name: str) -> set[str]:
        """The steps that must have ended before a step may run.

        A step that depends on a condition also waits for the steps in the condition's branches.
        """
        step = self.steps[name]
        found = step.referred | set(step.depends_on) | ({step.branch[0]} if step.branch else set())
        for other in step.depends_on:
            if self.steps[other].type == "Condition" and not (step.branch and step.branch[0] == other):
                found |= set(self.branch_steps(other))
        return found

    def branch_steps(self, condition: str) -> list[str]:
        """All steps in both branches of a condition."""
        return [name for name, step in self.steps.items() if step.branch and step.branch[0] == condition]

    def values(self, given: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Every parameter's value for an execution.

        Args:
            given: StartPipelineExecution's `[{"Name": …, "Value": …}]`.

        Raises:
            Invalid: an unknown parameter, one given twice, a wrong type or choice, or one without value and default.
        """
        texts: dict[str, str] = {}
        for item in given:
            if item["Name"] in texts:
                raise Invalid(f"Parameter [{item['Name']}] is given twice")
            texts[item["Name"]] = item["Value"]
        if unknown := [name for name in texts if name not in self.parameters]:
            known = ", ".join(sorted(self.parameters)) or "none"
            raise Invalid(f"Parameters {unknown} are not declared in the pipeline; declared: {known}")
        values = {}
        for name, parameter in self.parameters.items():
            if name in texts:
                values[name] = parameter.read(texts[name])
            elif parameter.default is None:
                raise Invalid(f"Parameter [{name}] has no default value and must be given")
            else:
                values[name] = parameter.default
        return values


def parse(text: str) -> Definition:
    """Read and check a definition.

    Raises:
        Invalid: naming the first place that is wrong.
    """
    for problem in _problems(text):
        raise Invalid(f"Unable to parse pipeline definition. {problem}")
    document = json.loads(text)
    return Definition(
        {item["Name"]: _parameter(item) for item in document.get("Parameters", [])},
        {step.name: step for step in _flatten(document["Steps"])},
    )


def _problems(text: str) -> Iterator[str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield f"It is not JSON: {error}"
        return
    if not isinstance(document, dict):
        yield f"It must be a JSON object, not {type(document).__name__}"
        return
    if document.get("Version") != SCHEMA:
        yield f"Version is {document.get('Version')!r}: expected {SCHEMA!r}"
    parameters: dict[str, Any] = {}
    for index, item in enumerate(_list(document, "Parameters")):
        yield from _check_parameter(item, f"Parameters[{index}]", parameters)
    steps = document.get("Steps")
    if not isinstance(steps, list) or not steps:
        yield "Steps must be a list with at least one step"
        return
    yield from _check_forms(steps, "Steps", nested=False)
    found: dict[str, Step] = {}
    for step in _flatten(steps):
        if step.name in found:
            yield f"Step names must be unique: {step.name!r} is there twice"
        found[step.name] = step
    for step in found.values():
        yield from _check_references(step, found, parameters)
    yield from _check_cycles(Definition({}, found))
    for place, step_document in _documents(steps, "Steps"):
        for problem in check_step(step_document):
            yield f"{place}.Arguments of step {step_document['Name']!r}: {problem}"


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _check_parameter(item: Any, place: str, seen: dict[str, Any]) -> Iterator[str]:
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str) or not _NAME.fullmatch(item["Name"]):
        yield f"{place}: a parameter needs a Name of letters, digits, '-' and '_', not {item!r}"
        return
    name, kind, default = item["Name"], item.get("Type"), item.get("DefaultValue")
    if name in seen:
        yield f"{place}: parameter names must be unique: {name!r} is there twice"
    seen[name] = item
    if kind not in _TYPES:
        yield f"{place}: parameter {name!r} has the Type {kind!r}: expected one of {', '.join(_TYPES)}"
    elif default is not None and (
        not isinstance(default, _TYPES[kind]) or (isinstance(default, bool) and kind != "Boolean")
    ):
        yield f"{place}: parameter {name!r} has the DefaultValue {default!r}, which is not of type {kind}"
    elif item.get("EnumValues") and default is not None and default not in item["EnumValues"]:
        yield f"{place}: parameter {name!r} has the DefaultValue {default!r}: expected one of {item['EnumValues']}"


def _parameter(item: Mapping[str, Any]) -> Parameter:
    choices = tuple(as_text(value) for value in item.get("EnumValues") or ())
    return Parameter(item["Name"], item["Type"], item.get("DefaultValue"), choices)


def _check_forms(steps: list[Any], place: str, nested: bool) -> Iterator[str]:
    for index, step in enumerate(steps):
        here = f"{place}[{index}]"
        if not isinstance(step, dict) or not isinstance(step.get("Name"), str) or not _NAME.fullmatch(step["Name"]):
            yield f"{here}: a step needs a Name of at most 64 letters, digits, '-' and '_', not {str(step)[:80]}"
            continue
        name, kind = step["Name"], step.get("Type")
        if kind not in STEP_TYPES:
            yield f"{here}: step {name!r} has the Type {kind!r}, which is not supported here: {', '.join(STEP_TYPES)}"
            continue
        if not isinstance(step.get("Arguments"), dict):
            yield f"{here}: step {name!r} needs Arguments"
            continue
        if not isinstance(step.get("DependsOn", []), list):
            yield f"{here}: DependsOn of step {name!r} must be a list of step names"
        for item in _list(step, "PropertyFiles"):
            if not isinstance(item, dict) or not {"PropertyFileName", "OutputName", "FilePath"} <= set(item):
                yield f"{here}: a property file needs PropertyFileName, OutputName and FilePath, not {item!r}"
        if "CacheConfig" in step:
            yield from (f"{here}: step {name!r}: {problem}" for problem in caching.check(step["CacheConfig"]))
        if kind == "Condition":
            yield from _check_condition(step, here, nested)
        if kind == "Fail" and not (
            isinstance(message := step["Arguments"].get("ErrorMessage"), str) or is_variable(message)
        ):
            yield f"{here}: the fail step {name!r} needs an ErrorMessage"


def _check_condition(step: Mapping[str, Any], place: str, nested: bool) -> Iterator[str]:
    arguments = step["Arguments"]
    if nested:
        yield f"{place}: SageMaker has no condition step within a condition step: {step['Name']!r}"
    if set(arguments) - {"Conditions", "IfSteps", "ElseSteps"} or not isinstance(arguments.get("Conditions"), list):
        yield f"{place}: the condition step {step['Name']!r} needs Conditions, IfSteps and ElseSteps"
        return
    for index, condition in enumerate(arguments["Conditions"]):
        yield from conditions.check(condition, f"{place}.Conditions[{index}]")
    for branch in ("IfSteps", "ElseSteps"):
        yield from _check_forms(_list(arguments, branch), f"{place}.{branch}", nested=True)


def _documents(steps: list[Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, step in enumerate(steps):
        yield f"{place}[{index}]", step
        if step["Type"] == "Condition":
            for branch in ("IfSteps", "ElseSteps"):
                yield from _documents(_list(step["Arguments"], branch), f"{place}[{index}].{branch}")


def _flatten(steps: list[Any], branch: tuple[str, str] | None = None) -> Iterator[Step]:
    for step in steps:
        files = {
            item["PropertyFileName"]: (item["OutputName"], item["FilePath"]) for item in _list(step, "PropertyFiles")
        }
        cache = step.get("CacheConfig", {})
        labels = {"DisplayName": "StepDisplayName", "Description": "StepDescription"}
        yield Step(
            name=step["Name"],
            type=step["Type"],
            arguments=step["Arguments"],
            depends_on=tuple(step.get("DependsOn", [])),
            property_files=files,
            branch=branch,
            display={label: step[key] for key, label in labels.items() if step.get(key)},
            expire_after=cache["ExpireAfter"] if cache.get("Enabled") else None,
        )
        if step["Type"] == "Condition":
            for side in ("IfSteps", "ElseSteps"):
                yield from _flatten(_list(step["Arguments"], side), (step["Name"], side))


def _check_references(step: Step, steps: Mapping[str, Step], parameters: Mapping[str, Any]) -> Iterator[str]:
    for name in step.depends_on:
        if name not in steps:
            yield f"Step {step.name!r} depends on {name!r}, which does not exist"
    for variable in references.variables(step.own_arguments):
        yield from (f"Step {step.name!r}: {problem}" for problem in check_variable(variable, "Arguments"))
    try:
        gets = list(references.gets(step.own_arguments))
    except (KeyError, TypeError, AttributeError):
        return  # a malformed variable, reported just now
    for get in gets:
        found = references.step_of(get) if isinstance(get, str) else None
        if found:
            yield from _check_property(step, get, *found, steps)
        elif (
            isinstance(get, str) and get.startswith("Parameters.") and get.removeprefix("Parameters.") not in parameters
        ):
            yield f"Step {step.name!r} refers to {get}, which is not declared; declared: {', '.join(parameters)}"


def _check_property(step: Step, get: str, name: str, path: str, steps: Mapping[str, Step]) -> Iterator[str]:
    other = steps.get(name)
    if other is None:
        yield f"Step {step.name!r} refers to {get}, but there is no step {name!r}"
    elif path.startswith("PropertyFiles."):
        if path.removeprefix("PropertyFiles.") not in other.property_files:
            declared = ", ".join(other.property_files) or "none"
            yield f"Step {step.name!r} refers to {get}, which {name!r} does not declare; declared: {declared}"
    elif other.type not in STEP_OPERATIONS:
        yield f"Step {step.name!r} refers to {get}, but a {other.type} step has no properties"
    else:
        try:
            problem = check_property(other.type, references.tokens(path))
        except references.Unresolved as error:
            problem = str(error)
        if problem:
            yield f"Step {step.name!r} refers to {get}, which does not exist: {problem}"


def _check_cycles(definition: Definition) -> Iterator[str]:
    """Kahn's algorithm: take away what needs nothing that is left; what can not be taken away is in a circle."""
    if any(name not in definition.steps for step in definition.steps.values() for name in step.depends_on):
        return  # reported above
    left = {name: definition.needs(name) for name in definition.steps}
    while True:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        if not free:
            break
        left = {name: needs for name, needs in left.items() if name not in free}
    if left:
        yield f"The steps depend on each other in a circle: {', '.join(sorted(left))}"
