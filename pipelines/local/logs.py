"""Logs of jobs and endpoints, and the part of CloudWatch Logs' API that reads them.

A stream is a file that a job's process writes to directly, so nothing is lost when the service goes away. Beside it
lies an index, `TIME OFFSET` a line: what was in the file at which moment, noted while the job runs. An event's time is
that of the first note that covers it.
"""

import bisect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.local.errors import ServiceError

PROCESSING = "/aws/sagemaker/ProcessingJobs"
TRAINING = "/aws/sagemaker/TrainingJobs"
ENDPOINTS = "/aws/sagemaker/Endpoints"

_ROOT = "/aws/sagemaker/"
_MOST_EVENTS = 10_000  # in one answer, as on AWS
_MOST_BYTES = 1_048_576
_LONGEST_EVENT = 262_144  # bytes; AWS cuts there too
_SETTLED = 2.0  # seconds after which an unfinished last line counts as an event
_PART = re.compile(r"[A-Za-z0-9_.#\[\]$-]+")


@dataclass(frozen=True)
class Event:
    """One line: when (seconds since 1970), what, and the byte after it."""

    time: float
    message: str
    end: int


class Logs:
    """Streams under one directory: `/aws/sagemaker/TrainingJobs`, `job/algo-1-…` is `TrainingJobs/job/algo-1-….log`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stream(self, group: str, name: str) -> Path:
        """The file of a stream; its folder is made."""
        path = self._group(group) / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _group(self, group: str) -> Path:
        parts = group.removeprefix(_ROOT).split("/")
        if not group.startswith(_ROOT) or any(not _PART.fullmatch(part) or part in (".", "..") for part in parts):
            raise _missing("log group")
        return self.root.joinpath(*parts)

    def _find(self, group: str, name: str) -> Path:
        path = self._group(group) / f"{name}.log"
        if any(not _PART.fullmatch(part) or part in (".", "..") for part in name.split("/")) or not path.is_file():
            raise _missing("log stream")
        return path

    def streams(self, group: str, prefix: str = "") -> list[str]:
        """Names of the streams of a group, in order."""
        folder = self._group(group)
        if not folder.is_dir():
            raise _missing("log group")
        names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.log"))
        return sorted(name for name in names if name.startswith(prefix))

    # --- CloudWatch Logs: `Logs_20140328.<Operation>`

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Raises:
            ServiceError: an unknown group or stream, or an operation that is not one of the three reads.
        """
        operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "DescribeLogStreams": self._describe_streams,
            "GetLogEvents": self._get_events,
            "FilterLogEvents": self._filter_events,
        }
        if operation not in operations:
            raise ServiceError("NotImplemented", f"logs:{operation} is not supported here; {', '.join(operations)} are")
        try:
            return operations[operation](request)
        except KeyError as error:
            raise ServiceError("InvalidParameterException", f"{error.args[0]} is required") from None

    def _describe_streams(self, request: dict[str, Any]) -> dict[str, Any]:
        group = request["logGroupName"]
        names = self.streams(group, request.get("logStreamNamePrefix", ""))
        files = [(name, self._find(group, name)) for name in names]
        if request.get("orderBy") == "LastEventTime":
            files.sort(key=lambda item: item[1].stat().st_mtime)
        if request.get("descending"):
            files.reverse()
        first, most = _integer(request.get("nextToken", "0")), min(int(request.get("limit", 50)), 50)
        answer: dict[str, Any] = {"logStreams": [_describe(name, path) for name, path in files[first : first + most]]}
        if first + most < len(files):
            answer["nextToken"] = str(first + most)
        return answer

    def _get_events(self, request: dict[str, Any]) -> dict[str, Any]:
        path = self._find(request["logGroupName"], request["logStreamName"])
        most = min(int(request.get("limit", _MOST_EVENTS)), _MOST_EVENTS)
        token = str(request.get("nextToken", ""))
        direction, _, position = token.partition("/")
        backward = direction == "b" or (not token and not request.get("startFromHead"))
        if backward:
            # Rarely asked for, and by people: all of it is read, the last part kept.
            end = _integer(position) if token else None
            events = [event for event in _events(path, 0) if end is None or event.end <= end]
            events = _between(events, request)[-most:]
        else:
            events = []
            size = 0
            for event in _between(_events(path, _integer(position) if token else 0), request):
                size += len(event.message)
                if len(events) == most or size > _MOST_BYTES:
                    break
                events.append(event)
        start = _integer(position) if token else 0
        forward = events[-1].end if events else start
        first = events[0].end - len(events[0].message.encode()) - 1 if events else start
        return {
            "events": [
                {"timestamp": _millis(event.time), "message": event.message, "ingestionTime": _millis(event.time)}
                for event in events
            ],
            "nextForwardToken": f"f/{forward}",
            "nextBackwardToken": f"b/{max(first, 0)}",
        }

    def _filter_events(self, request: dict[str, Any]) -> dict[str, Any]:
        group = request["logGroupName"]
        names = request.get("logStreamNames") or self.streams(group, request.get("logStreamNamePrefix", ""))
        wanted = str(request.get("filterPattern", "")).strip()
        if wanted.startswith(("{", "[")):
            raise ServiceError("InvalidParameterException", f"Only plain text is supported as filterPattern: {wanted}")
        terms = [term.strip('"') for term in re.findall(r'"[^"]*"|\S+', wanted)]
        found = []
        for name in names:
            for event in _between(_events(self._find(group, name), 0), request):
                if all(term in event.message for term in terms):
                    found.append((event.time, name, event))
        found.sort(key=lambda item: (item[0], item[1], item[2].end))
        first, most = (
            _integer(request.get("nextToken", "0")),
            min(int(request.get("limit", _MOST_EVENTS)), _MOST_EVENTS),
        )
        answer: dict[str, Any] = {
            "events": [
                {
                    "logStreamName": name,
                    "timestamp": _millis(when),
                    "message": event.message,
                    "ingestionTime": _millis(when),
                    "eventId": f"{name}:{event.end}",
                }
                for when, name, event in found[first : first + most]
            ],
            "searchedLogStreams": [],
        }
        if first + most < len(found):
            answer["nextToken"] = str(first + most)
        return answer


class Index:
    """Keeps the index of a stream while its process runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted = 0

    def note(self) -> None:
        """Note how far the stream has got by now, if it has got any further."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._noted:
            self._noted = size
            with self._path.with_suffix(".index").open("a") as file:
                file.write(f"{time.time():.3f} {size}\n")


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, for an error message."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65_536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _events(path: Path, start: int) -> Iterator[Event]:
    """The lines of a stream from byte `start` on; an unfinished last line only once it has settled."""
    times: list[float] = []
    ends: list[int] = []
    index = path.with_suffix(".index")
    if index.exists():
        for entry in index.read_text().splitlines():
            moment, _, end = entry.partition(" ")
            if end.isdigit():  # the last line may be half written
                times.append(float(moment))
                ends.append(int(end))
    stat = path.stat()
    with path.open("rb") as file:
        file.seek(start)
        position = start
        for line in file:
            if not line.endswith(b"\n") and time.time() - stat.st_mtime < _SETTLED:
                return
            position += len(line)
            at = bisect.bisect_left(ends, position)
            when = times[at] if at < len(times) else stat.st_mtime
            text = line[:_LONGEST_EVENT].decode(errors="replace").rstrip("\r\n")
            # A progress bar rewrites its line with carriage returns: what a terminal would show is the last of them.
            yield Event(when, text.rsplit("\r", 1)[-1], position)


def _between(events: Any, request: dict[str, Any]) -> list[Event]:
    start, end = request.get("startTime"), request.get("endTime")
    return [
        event
        for event in events
        if event.message  # CloudWatch takes no empty events
        and (start is None or _millis(event.time) >= start)
        and (end is None or _millis(event.time) < end)
    ]


def _describe(name: str, path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "logStreamName": name,
        "creationTime": _millis(stat.st_ctime),
        "lastEventTimestamp": _millis(stat.st_mtime),
        "lastIngestionTime": _millis(stat.st_mtime),
        "storedBytes": stat.st_size,
    }


def _millis(seconds: float) -> int:
    return int(seconds * 1000)


def _integer(token: str) -> int:
    if not str(token).isdigit():
        raise ServiceError("InvalidParameterException", f"The specified nextToken is invalid: {token}")
    return int(token)


def _missing(what: str) -> ServiceError:
    return ServiceError("ResourceNotFoundException", f"The specified {what} does not exist.")
