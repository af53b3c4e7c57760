"""How a job says that it failed.

A user's mistake (bad data, a bad value) is a `UserError`: one line on stderr, the same line where SageMaker looks for
the reason, exit code 1, no traceback. Anything else is a bug of ours and keeps its full traceback.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# SageMaker shows the first 1,024 characters: a training job's FailureReason, a processing job's ExitMessage.
TRAINING = "failure"
PROCESSING = "message"


class UserError(ValueError):
    """What was wrong, with the value, what was expected, and the way out: one line."""


def run(main: Callable[[], None], reason_file: str) -> NoReturn:
    """Call `main` and leave the process with 0, or with 1 and the reason in `$SM_OUTPUT_DIR/<reason_file>`."""
    try:
        main()
    except UserError as error:
        line = "error: " + " ".join(str(error).split())
        print(line, file=sys.stderr, flush=True)
        _write(reason_file, line)
        sys.exit(1)
    except Exception as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        _write(reason_file, f"{type(error).__name__}: {error}\n\n{text}")
        sys.exit(1)
    sys.exit(0)


def _write(reason_file: str, text: str) -> None:
    folder = Path(os.environ.get("SM_OUTPUT_DIR", "/opt/ml/output"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / reason_file).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # run by hand, outside a job: the line on stderr is all there is
        print(f"(the reason could not be written to {folder / reason_file}: {error})", file=sys.stderr)
