"""Hyperparameters from the command line, as SageMaker hands them over.

Every value is a string, and on its way through the tuner, a pipeline property and the training toolkit it may have been
quoted once or twice more: `10`, `"10"` and `"\"10\""` all mean ten.
"""

import argparse
import difflib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from failures import UserError

_INT = re.compile(r"[+-]?[0-9]{1,18}")  # int() alone would also take "1_000" and digits of other scripts
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}

# The tuner adds this to every trial's hyperparameters; nothing here needs it.
_TUNER_OWN = "--_tuning_objective_metric"


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: `--name value`, its type and its bounds."""

    name: str
    default: int | float | str | bool
    help: str
    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> int | float | str | bool:
        """The value `text` stands for, in the type of the default.

        Raises:
            UserError: not of that type, or out of bounds; says the name, the value and what was expected.
        """
        kind = type(self.default)
        plain = unquote(text).strip()
        value: int | float | str | bool = plain
        bounds = f" of at least {self.minimum:g}" if self.minimum is not None else ""
        bounds += f" above {self.above:g}" if self.above is not None else ""
        bounds += f" below {self.below:g}" if self.below is not None else ""
        expected = f"one of {', '.join(self.choices)}" if self.choices else _EXPECTED[kind] + bounds
        valid = True
        if kind is bool:
            valid = plain.lower() in ("true", "false")
            value = plain.lower() == "true"
        elif kind is int:
            valid = _INT.fullmatch(plain) is not None
            value = int(plain) if valid else plain
        elif kind is float:
            valid = _FLOAT.fullmatch(plain) is not None and math.isfinite(float(plain))
            value = float(plain) if valid else plain
        if self.choices:
            valid = plain in self.choices
        if valid and isinstance(value, int | float):
            valid = (
                (self.minimum is None or value >= self.minimum)
                and (self.above is None or value > self.above)
                and (self.below is None or value < self.below)
            )
        if not valid:
            raise UserError(f"hyperparameter {self.name} = {text}: expected {expected}")
        return value


# Of a head, whether a trial of the tuner trains it or Train.
HEAD = (
    Hyperparameter("lr", 0.01, "AdamW's learning rate at the start; a cosine takes it to zero", above=0),
    Hyperparameter("batch-size", 32, "photos a step", minimum=1),
    Hyperparameter("epochs", 20, "passes over the features", minimum=1),
    Hyperparameter("weight-decay", 0.3, "AdamW's decoupled weight decay, times the learning rate each step", minimum=0),
    Hyperparameter("label-smoothing", 0.0, "share of a label that is spread over all classes", minimum=0, below=1),
    Hyperparameter("mixup", 0.0, "alpha of mixup in feature space; 0 mixes none", minimum=0),
    Hyperparameter("views", 0, "augmented views of a photo to learn from, at most as many as were embedded", minimum=0),
    Hyperparameter("patience", 0, "epochs without a better validation loss that end the training; 0: none", minimum=0),
    Hyperparameter("seed", 0, "seeds the order of the photos", minimum=0),
)


def unquote(text: str) -> str:
    r"""`text` without the JSON string quotes around it, however many layers: `"\"10\""` becomes `10`."""
    while len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            inner = json.loads(text)
        except json.JSONDecodeError:
            break
        text = str(inner)
    return text


class Parser(argparse.ArgumentParser):
    """Options in, `UserError` out, where argparse would print its usage and leave with code 2."""

    def __init__(self, description: str | None, hyperparameters: Iterable[Hyperparameter] = ()) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self._hyperparameters = list(hyperparameters)
        for each in self._hyperparameters:
            self.add_argument(f"--{each.name}", default=str(each.default), help=each.help)
        if self._hyperparameters:
            self.add_argument(_TUNER_OWN, help=argparse.SUPPRESS)

    def parse(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """The options, hyperparameters parsed to their types; dashes become underscores."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise UserError(f"unknown option {unknown[0]}; {hint}")
        for each in self._hyperparameters:
            name = each.name.replace("-", "_")
            setattr(options, name, each.parse(getattr(options, name)))
        return options

    def describe(self, options: argparse.Namespace) -> str:
        """`lr=0.001 batch-size=32 …`, for the log."""
        values: list[tuple[str, Any]] = [
            (h.name, getattr(options, h.name.replace("-", "_"))) for h in self._hyperparameters
        ]
        return " ".join(f"{name}={value}" for name, value in values)

    def error(self, message: str) -> NoReturn:
        """Argparse's own complaints as a `UserError`."""
        raise UserError(f"{self.prog}: {message}")
