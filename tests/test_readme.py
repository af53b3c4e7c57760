"""The README's commands exist, and its tables say what the settings say."""

import re
import shlex
from typing import Any

import pytest

from pipelines import run
from pipelines.contract import ROOT
from pipelines.settings import PARAMETERS, Settings

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def rows(header: str) -> dict[str, str]:
    """First column to second of the table under a header."""
    table = README.split(header, 1)[1].split("\n\n", 1)[0]
    return {cells[0].strip("` "): cells[1].strip("` ") for line in table.splitlines() if (cells := line.split("|")[1:])}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_given(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert words[:2] == [".venv/bin/python", "pipelines/run.py"]
    options = run.parser().parse_args(words[2:])
    config = getattr(options, "config", None)
    assert config is None or (ROOT / config).is_file()
    for override in getattr(options, "set", []):
        assert override.split("=")[0] in Settings.model_fields
    for parameter in getattr(options, "parameter", []):
        assert parameter.split("=")[0] in PARAMETERS


def as_written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and value != 1.0 else str(value)


def test_the_parameters_are_the_definitions() -> None:
    table = rows("| Pipeline parameter | Default | |\n|---|---|---|\n")
    assert list(table) == list(PARAMETERS)
    for name, field in PARAMETERS.items():
        if name not in ("InputData", "Weights", "EndpointName"):
            assert table[name] == as_written(Settings.model_fields[field].default)


def test_the_settings_are_the_settings() -> None:
    table = rows("settings.py -->\n| Field | Default | |\n|---|---|---|\n")
    assert len(table) > 15
    for name, default in table.items():
        if name not in ("lr", "batch_size", "bucket"):
            assert default == as_written(Settings.model_fields[name].default), name


def test_the_layout_names_what_there_is() -> None:
    block = README.split("## How it is laid out", 1)[1].split("```")[1]
    for name in re.findall(r"^(\w+)/", block, re.MULTILINE):
        assert (ROOT / name).is_dir()
