"""What a person sees: tables on a terminal, plain lines elsewhere. Results go to stdout, progress to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipelines.execution import ENDED, Step

COLOURS = {"Succeeded": "green", "Failed": "bold red", "Stopped": "yellow", "Executing": "cyan"}


def out() -> Console:
    """Stdout: colours and boxes only on a terminal; never wrapped elsewhere, so that lines can be searched."""
    return _console(sys.stdout)


def err() -> Console:
    """Stderr, likewise."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    terminal = file.isatty()
    return Console(file=file, highlight=False, soft_wrap=not terminal, width=None if terminal else 200)


def print_json(value: Any) -> None:
    """One object, for machines."""
    print(json.dumps(value, indent=1, default=str))


def print_table(console: Console, table: Table) -> None:
    """A table, without the blanks that fill its lines up where it is not for a terminal."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=console.file)


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table_of(steps: list[Step], ended: bool) -> Table:
    """A row a step."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("step", "state", "time", "last metric"):
        table.add_column(name, no_wrap=name != "last metric", overflow="ellipsis")
    for step in steps:
        waiting = step.status == "Waiting"
        state = ("not run" if ended else "waiting") if waiting else step.status
        state += " (cached)" if step.cached else ""
        style = "dim" if waiting else ""
        row = (step.name, Text(state, COLOURS.get(step.status, "dim")), duration(step.seconds), step.figure)
        table.add_row(*row, style=style)
    return table


class Lines:
    """Progress without a terminal: a line whenever a step changes its state."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._console = err()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, steps: list[Step], ended: bool) -> None:
        """The steps as they are now."""
        for step in steps:
            if step.status in ("Waiting", self._seen.get(step.name)):
                continue
            self._seen[step.name] = step.status
            time = duration(step.seconds) if step.status in ENDED else ""
            cached = " (cached)" if step.cached else ""
            line = f"{step.name:<15} {step.status + cached:<12} {time:>10}  {step.figure}"
            self._console.print(Text(line.rstrip()))


class Board:
    """Progress on a terminal: the table, redrawn."""

    def __init__(self) -> None:
        self._live = Live(console=err(), refresh_per_second=4, transient=False)

    def __enter__(self) -> "Board":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, steps: list[Step], ended: bool) -> None:
        """The steps as they are now."""
        self._live.update(Group(table_of(steps, ended)))


def board() -> Board | Lines:
    """Whichever suits where stderr goes."""
    return Board() if sys.stderr.isatty() else Lines()


@contextmanager
def uploads() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of thing that is uploaded; without a terminal a line when one is done."""
    console = err()
    if not console.is_terminal:

        def tell(what: str, done: int, total: int) -> None:
            if done == total:
                console.print(f"staged {what}: {total} {'object' if total == 1 else 'objects'}")

        yield tell
        return
    columns = (TextColumn("staging {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield tell
