"""Where a long training stands, in one file that survives `kill -9`; SageMaker brings it back after an interruption.

    checkpoint.pt = "checkpoint IDENTITY SHA256\\n", then what torch.save wrote

The identity says whose checkpoint it is: the folder is shared by all executions of a pipeline, since a URI with the
execution in it would defeat SageMaker's step cache.
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"
FORMAT = 1  # goes into the identity: raise it when the state or the training's arithmetic changes


def identity(*facts: Any) -> str:
    """SHA-256 over everything the trained weights depend on; plain JSON values."""
    text = json.dumps([FORMAT, torch.__version__, *facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint of one run; nothing is kept where the folder does not exist, which is a job without them."""

    folder: Path
    identity: str
    interval: float
    """Seconds between two savings within an epoch; one is saved after each epoch in any case."""

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint: at every moment the old one or the new one is there, whole."""
        if not self.folder.is_dir():
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        header = f"checkpoint {self.identity} {hashlib.sha256(buffer.getbuffer()).hexdigest()}\n".encode()
        beside = self.folder / f".{NAME}.tmp"  # one name, so that a killed run leaves one at most
        with beside.open("wb") as file:
            file.write(header)
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / NAME)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load(self) -> dict[str, Any] | None:
        """The state to go on from; None, with a line in the log, if there is none of this run."""
        path = self.folder / NAME
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                words = file.readline(200).decode("ascii").split()
                if len(words) != 3 or words[0] != "checkpoint":
                    raise ValueError("it has no header")
                if words[1] != self.identity:
                    print(f"{path} is of another run (other data or hyperparameters): starting afresh", flush=True)
                    return None
                content = file.read()
            if hashlib.sha256(content).hexdigest() != words[2]:
                raise ValueError("its checksum does not match")
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (OSError, ValueError) as error:
            print(f"WARNING: {path} is damaged ({error}): starting afresh", flush=True)
            return None
        return state
