"""Pipeline variables: `Get`, `Std:Join` and `Std:JsonGet`, resolved while an execution runs."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.service_model import as_text, is_variable

_TOKEN = re.compile(r"""\.?([A-Za-z0-9_\-]+)|\['([^']*)'\]|\["([^"]*)"\]|\[(\d+)\]""")


class Unresolved(Exception):
    """A reference that leads nowhere; the message says which."""


def tokens(path: str) -> list[str | int]:
    """`Outputs['train'].S3Output.S3Uri` as `["Outputs", "train", "S3Output", "S3Uri"]`; `[0]` becomes the number 0.

    Raises:
        Unresolved: the path can not be read.
    """
    found: list[str | int] = []
    position = 0
    while position < len(path):
        match = _TOKEN.match(path, position)
        if not match:
            raise Unresolved(f"{path!r} can not be read from {path[position:]!r} on")
        found.append(int(match[4]) if match[4] is not None else next(g for g in match.groups()[:3] if g is not None))
        position = match.end()
    return found


def follow(value: Any, path: list[str | int]) -> Any:
    """Walk into a document.

    A list is entered by position, or by the name its items carry (`Outputs['train']` is the one whose OutputName is
    `train`).

    Raises:
        KeyError: there is nothing there; its argument is the token that failed.
    """
    for token in path:
        inside = isinstance(value, Mapping) and token in value
        if inside or (isinstance(value, list) and isinstance(token, int) and token < len(value)):
            value = value[token]
        elif isinstance(value, list) and isinstance(token, str):
            named = [item for item in value if isinstance(item, Mapping) and token in _names(item)]
            if not named:
                raise KeyError(token)
            value = named[0]
        else:
            raise KeyError(token)
    return value


def _names(item: Mapping[str, Any]) -> Iterator[Any]:
    return (value for key, value in item.items() if key.endswith("Name"))


def variables(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every pipeline variable anywhere in a JSON value, the outermost only."""
    if is_variable(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from variables(item)
    elif isinstance(value, list):
        for item in value:
            yield from variables(item)


def gets(value: Any) -> Iterator[str]:
    """Everything a JSON value refers to: the text of every `Get`, those inside joins and JsonGets too."""
    for variable in variables(value):
        kind, body = next(iter(variable.items()))
        if kind == "Get":
            yield body
        elif kind == "Std:Join":
            yield from gets(body["Values"])
        else:
            yield from gets([body.get("PropertyFile"), body.get("S3Uri")])


def step_of(get: str) -> tuple[str, str] | None:
    """`Steps.Train.ModelArtifacts…` as ("Train", "ModelArtifacts…"); None for parameters and execution variables."""
    if not get.startswith("Steps."):
        return None
    match = re.match(r"Steps\.([A-Za-z0-9\-_]+)\.?(.*)", get, re.DOTALL)
    return (match[1], match[2]) if match else None


@dataclass(frozen=True)
class Scope:
    """What references resolve against."""

    parameters: Mapping[str, Any]
    execution: Mapping[str, str]
    """Execution variables by name."""
    properties: Callable[[str], Mapping[str, Any]]
    """A step's properties: the Describe answer of what it made."""
    property_file: Callable[[str, str], str]
    """The S3 URI of a step's property file, by its name."""
    read: Callable[[str], bytes]
    """An object's content, by its S3 URI."""

    def resolve(self, value: Any) -> Any:
        """`value` with every pipeline variable in it replaced by what it stands for.

        Raises:
            Unresolved: one leads nowhere.
        """
        if is_variable(value):
            kind, body = next(iter(value.items()))
            if kind == "Get":
                return self._get(body)
            return self._join(body) if kind == "Std:Join" else self._json_get(body)
        if isinstance(value, Mapping):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        return value

    def _get(self, path: str) -> Any:
        step = step_of(path)
        try:
            if step:
                return follow(self.properties(step[0]), tokens(step[1]))
            family, _, name = path.partition(".")
            return self.parameters[name] if family == "Parameters" else self.execution[name]
        except KeyError as error:
            raise Unresolved(f"{path} has no value: there is no {error.args[0]!r}") from None

    def _join(self, body: Mapping[str, Any]) -> str:
        parts = [self.resolve(item) for item in body["Values"]]
        for item, part in zip(body["Values"], parts, strict=True):
            if not isinstance(part, str | int | float):
                raise Unresolved(f"Std:Join: {item} is not text or a number but {part!r}")
        return str(body["On"].join(as_text(part) for part in parts))

    def _json_get(self, body: Mapping[str, Any]) -> Any:
        if "PropertyFile" in body:
            step, name = self._property_file(body["PropertyFile"])
            uri = self.property_file(step, name)
        else:
            uri = self.resolve(body["S3Uri"])
        try:
            document = json.loads(self.read(uri))
        except (ValueError, UnicodeDecodeError) as error:
            raise Unresolved(f"Std:JsonGet: {uri} is not JSON: {error}") from None
        path = body["Path"]
        try:
            found = follow(document, tokens(path.removeprefix("$").removeprefix(".")))
        except KeyError as error:
            raise Unresolved(f"Std:JsonGet: {uri} has nothing at {path!r}: there is no {error.args[0]!r}") from None
        if isinstance(found, Mapping | list) or found is None:
            raise Unresolved(f"Std:JsonGet: {path!r} in {uri} is not a single value: {str(found)[:100]}")
        return found

    @staticmethod
    def _property_file(reference: Any) -> tuple[str, str]:
        step = step_of(reference["Get"]) if is_variable(reference) else None
        if not step or not step[1].startswith("PropertyFiles."):
            raise Unresolved(f"Std:JsonGet: {reference} is not Steps.NAME.PropertyFiles.NAME")
        return step[0], step[1].removeprefix("PropertyFiles.")
