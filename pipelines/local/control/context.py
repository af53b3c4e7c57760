"""What an operation works on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.local.hosting import Hosting
from pipelines.local.machine import Machine


@dataclass(frozen=True)
class Service:
    """The machine and what runs on it beside jobs."""

    machine: Machine
    hosting: Hosting


Operation = Callable[[Service, dict[str, Any]], dict[str, Any]]
"""A request of the API, already valid, to its answer; raises ServiceError."""
