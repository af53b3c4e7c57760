"""Checkpoints of training jobs: brought in before a job starts, and kept in the object store while it runs.

As on AWS, what a job writes to its checkpoint folder is copied to CheckpointConfig's S3Uri all the time, so that a job
that was killed is gone on with by the next one of that S3Uri. Files are copied, never linked: the job may write into
them again.
"""

import contextlib
import time
from pathlib import Path

from pipelines.local import container, objects
from pipelines.local.container import Container
from pipelines.local.errors import JobError, ServiceError
from pipelines.local.machine import Machine
from pipelines.local.store import Document

DEFAULT = "/opt/ml/checkpoints"
_EVERY = 1.0  # seconds between two looks
_SETTLED = 0.25  # seconds a file must not have been written to: one that is being written is left for the next look


def folder(config: Document, opt_ml: Path) -> Path:
    """Where a host's checkpoints lie.

    Raises:
        JobError: CheckpointConfig's LocalPath is not a folder under /opt/ml.
    """
    path = config.get("LocalPath", DEFAULT)
    if not path.startswith("/opt/ml/") or ".." in path.split("/"):
        raise JobError(f"ClientError: CheckpointConfig: LocalPath must lie under /opt/ml/ here, and is {path!r}")
    return Path(container.mapped(path, opt_ml))


class Checkpoints:
    """The checkpoint folders of a job's hosts, and the one prefix they share."""

    def __init__(self, machine: Machine, config: Document, hosts: list[Container]) -> None:
        self._objects = machine.objects
        self._uri = config["S3Uri"].rstrip("/")
        # The first host's files win where several write the same one: it is the last to be copied.
        self._folders = [(folder(config, host.opt_ml), host.root) for host in reversed(hosts)]
        self._known: dict[Path, tuple[int, int, int]] = {}
        self._next = 0.0

    def bring(self) -> None:
        """Put the checkpoints of an earlier job into place, as files of the hosts' own."""
        for place, root in self._folders:
            objects.place(self._objects.under(self._uri), place, objects.copy)
            self._known |= {path: _stamp(path) for _, path in objects.files(place, within=root)}

    def keep(self) -> None:
        """While the job runs: copy what has changed, about once a second. What can not be copied is left to `end`."""
        if time.monotonic() < self._next:
            return
        for place, root in self._folders:
            with contextlib.suppress(ServiceError, FileNotFoundError):
                for name, path in objects.files(place, within=root):
                    if time.time() - path.stat().st_mtime >= _SETTLED:
                        self._copy(name, path, complete=False)
        self._next = time.monotonic() + _EVERY

    def end(self) -> None:
        """The job has ended: copy what is left.

        Raises:
            ServiceError: no such bucket; a file that is a link out of the job.
        """
        for place, root in self._folders:
            for name, path in objects.files(place, within=root):
                self._copy(name, path, complete=True)

    def _copy(self, name: str, path: Path, complete: bool) -> None:
        """Make the file an object, in one rename, if it has changed; unless it changes at this very moment."""
        stamp = _stamp(path)
        if self._known.get(path) == stamp:
            return
        temporary = self._objects.temporary()
        try:
            objects.copy(path, temporary)
            if complete or _stamp(path) == stamp:
                self._objects.put(*objects.split(f"{self._uri}/{name}"), temporary)
                self._known[path] = stamp
        finally:
            temporary.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
