"""Asking an endpoint about photos."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.place import Place

CONTENT_TYPE = "application/x-image"  # whichever of JPEG, PNG and WebP it is
_LARGEST = 25_000_000  # bytes of a request, SageMaker's limit for a real-time endpoint


@dataclass(frozen=True)
class Prediction:
    """An endpoint's answer for one photo."""

    photo: str
    label: str
    probabilities: dict[str, float]
    """Of the most probable classes, most probable first."""

    def line(self) -> str:
        """`cat/7.jpg: cat 98.1%, dog 1.2%, fox 0.4%`."""
        best = list(self.probabilities.items())[:3]
        return f"{self.photo}: " + ", ".join(f"{name} {share:.1%}" for name, share in best)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"photo": self.photo, "label": self.label, "probabilities": self.probabilities}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Prediction":
        """The inverse of `to_json`."""
        return cls(**value)


def read(path: str) -> bytes:
    """A photo's bytes.

    Raises:
        UserError: not a file that can be read.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > _LARGEST:
        raise UserError(f"{path} has {len(data):,} bytes: an endpoint takes at most {_LARGEST:,}")
    return data


def ask(place: Place, endpoint: str, name: str, data: bytes) -> Prediction:
    """One photo's prediction.

    Raises:
        UserError: no such endpoint, or it refuses the photo.
    """
    from botocore.exceptions import ClientError

    runtime = place.client("sagemaker-runtime")
    try:
        answer = runtime.invoke_endpoint(
            EndpointName=endpoint, ContentType=CONTENT_TYPE, Accept="application/json", Body=data
        )
    except ClientError as error:
        raise UserError(_explain(place, endpoint, name, error)) from None
    prediction = json.loads(answer["Body"].read())["predictions"][0]
    return Prediction(name, prediction["label"], prediction["probabilities"])


def _explain(place: Place, endpoint: str, name: str, error: Any) -> str:
    if error.response["Error"]["Code"] == "ModelError":
        return f"{name}: endpoint {endpoint} refuses it: {_reason(error.response)}"
    there = [each["EndpointName"] for each in place.client("sagemaker").list_endpoints()["Endpoints"]]
    if endpoint not in there:
        known = f"there are: {', '.join(there)}" if there else "there are none; a passed gate and Approved deploy one"
        return f"there is no endpoint {endpoint}; {known}"
    return f"{name}: {error}"


def _reason(response: dict[str, Any]) -> str:
    """What the handlers said; they answer `{"error": …}`."""
    text = str(response.get("OriginalMessage") or response["Error"]["Message"])
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    return str(answer["error"]) if isinstance(answer, dict) and "error" in answer else text


def endpoint_of(place: Place, configured: str | None) -> str:
    """The endpoint to ask: the one of the config, else the newest.

    Raises:
        UserError: there is none.
    """
    if configured:
        return configured
    found = place.client("sagemaker").list_endpoints(SortBy="CreationTime", SortOrder="Descending")["Endpoints"]
    if not found:
        raise UserError("there is no endpoint yet: a run whose gate passes, with ApprovalStatus Approved, deploys one")
    return str(found[0]["EndpointName"])
