"""Names and ARNs as AWS forms them."""

import re
import secrets
import string

REGION = "us-east-1"
ACCOUNT = "000000000000"
DEFAULT_BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"

_ALPHABET = string.ascii_lowercase + string.digits
_LONGEST = 63  # characters in the name of a job, model or endpoint
_LONGEST_TUNING = 32


def arn(kind: str, name: str) -> str:
    """`arn:aws:sagemaker:REGION:ACCOUNT:KIND/NAME`."""
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def from_arn(text: str, kind: str) -> str:
    """The name in an ARN of this kind; a plain name is returned as it is."""
    prefix = arn(kind, "")
    return text.removeprefix(prefix) if text.startswith("arn:") else text


def random_id(length: int) -> str:
    """`length` lowercase letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def for_step(execution_id: str, step: str, tuning: bool = False) -> str:
    """The name of the job a step starts: `pipelines-EXECUTION-STEP-RANDOM`, cut to what the API allows.

    A tuning job's name may have half as many characters, so it goes without the `pipelines-` in front.
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", step).strip("-") or "step"
    head, longest = (execution_id, _LONGEST_TUNING) if tuning else (f"pipelines-{execution_id}", _LONGEST)
    tail = random_id(10)
    room = longest - len(head) - len(tail) - 2
    return f"{head}-{plain[:room].rstrip('-')}-{tail}"


def execution_id(execution_arn: str) -> str:
    """The last part of an execution's ARN."""
    return execution_arn.rsplit("/", 1)[-1]
