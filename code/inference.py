"""The endpoint's handlers, and Evaluate's: what is measured is what is served.

    model_fn(model_dir) -> model              input_fn(body, content_type) -> photos
    predict_fn(photos, model) -> prediction   output_fn(prediction, accept) -> (body, content type)

A request is one photo (image/jpeg, image/png, image/webp, application/x-image) or a batch of them,
`{"images": ["<base64>", …]}` (application/json). The answer is JSON, or CSV where the client prefers it:

    {"predictions": [{"label": "beagle", "probabilities": {"beagle": 0.91, "basset": 0.05, …}}]}

ONNX Runtime where it is installed, PyTorch otherwise; both give the same answers. Travels inside model.tar.gz, and
needs nothing from outside it but NumPy, Pillow and one of the two.
"""

import base64
import binascii
import contextlib
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import photos
from contract import MODEL_FILE

IMAGE_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp", "application/x-image")
JSON_TYPE, CSV_TYPE = "application/json", "text/csv"
MAX_PHOTOS = 64  # of a batch
MAX_PIXELS = photos.MAX_PIXELS  # of a request, all its photos together: what bounds its memory
TOP = 5  # how many labels an answer names
BATCH = 8  # photos a forward pass, so that a large batch needs no more memory than this


class BadRequest(ValueError):
    """The client's mistake. `status` is the HTTP status that says so: 400, 406, 413 or 415."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Model:
    """A loaded model: `run` takes float32 [N, 3, S, S] and gives logits [N, C]."""

    classes: list[str]
    preprocessing: photos.Preprocessing
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    engine: str
    """`onnxruntime` or `torch`."""


@dataclass(frozen=True)
class Prediction:
    """Natural logarithms of the probabilities, float64 [N, C]: they stay finite where a probability rounds to 0."""

    classes: list[str]
    log_probabilities: NDArray[np.float64]


def model_fn(model_dir: str) -> Model:
    """Load what Train packed. One thread: a server runs one worker a core."""
    folder = Path(model_dir)
    meta = json.loads((folder / MODEL_FILE).read_text())
    try:
        import onnxruntime  # noqa: F401 - only asked whether it is there
    except ImportError:
        engine, run = "torch", _torch(folder, meta)
    else:
        engine, run = "onnxruntime", _onnx(folder)
    return Model(meta["classes"], photos.Preprocessing.from_json(meta["preprocessing"]), run, engine)


def _onnx(folder: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"photos": np.ascontiguousarray(batch)})[0]
        return logits

    return run


def _torch(folder: Path, meta: dict[str, Any]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import torch

    import networks

    torch.set_num_threads(1)
    backbone, feature_dim = networks.create(meta["backbone"], meta["preprocessing"]["image_size"])
    network = networks.Classifier(backbone, torch.nn.Linear(feature_dim, len(meta["classes"])))
    network.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    fast = networks.fused(network)

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = fast(torch.from_numpy(batch)).numpy()
            return logits

    return run


def input_fn(body: bytes | bytearray | str, content_type: str | None) -> list[Image.Image]:
    """The photos of a request, decoded.

    Raises:
        BadRequest: 415 for a content type not served, 413 for too many photos or pixels, 400 for a body that is not
            what its content type says.
    """
    kind = (content_type or "").split(";")[0].strip().lower()
    if kind not in (*IMAGE_TYPES, JSON_TYPE):
        raise BadRequest(415, f"content type {content_type!r}: expected one of {', '.join((*IMAGE_TYPES, JSON_TYPE))}")
    if not body:
        raise BadRequest(400, "the request is empty: expected a photo")
    if kind != JSON_TYPE:
        return _decode([body.encode("latin-1", "replace") if isinstance(body, str) else bytes(body)])
    return _decode(_unpack(body))


def _unpack(body: bytes | bytearray | str) -> list[bytes]:
    expected = 'expected {"images": ["<a photo as base64>", …]}'
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"the request is not JSON ({error}): {expected}") from None
    images = request.get("images") if isinstance(request, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise BadRequest(400, f"the request is JSON of another form: {expected}")
    if len(images) > MAX_PHOTOS:
        raise BadRequest(413, f"{len(images)} photos in one request: expected at most {MAX_PHOTOS}")
    try:
        return [base64.b64decode(image, validate=True) for image in images]
    except (binascii.Error, ValueError) as error:
        raise BadRequest(400, f"an image is not base64 ({error}): {expected}") from None


def _decode(images: list[bytes]) -> list[Image.Image]:
    decoded: list[Image.Image] = []
    left = MAX_PIXELS
    for number, data in enumerate(images, 1):
        try:
            image = photos.decode(data, left)
        except photos.UnreadablePhoto as error:
            status = 413 if isinstance(error, photos.TooManyPixels) else 400
            raise BadRequest(status, f"photo {number} of {len(images)}: {error}") from None
        left -= image.width * image.height
        decoded.append(image)
    return decoded


def predict_fn(data: list[Image.Image], model: Model) -> Prediction:
    """Run the network on every photo."""
    rows = []
    for start in range(0, len(data), BATCH):
        pixels = np.stack([photos.centre_crop(image, model.preprocessing) for image in data[start : start + BATCH]])
        rows.append(model.run(photos.normalise(pixels, model.preprocessing)))
    logits = np.concatenate(rows).astype(np.float64)
    if not np.isfinite(logits).all():
        raise RuntimeError("the network gives values that are not finite")
    logits -= logits.max(axis=1, keepdims=True)
    return Prediction(model.classes, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def output_fn(prediction: Prediction, accept: str | None) -> tuple[str, str]:
    """The answer, as the client wants it: per photo the label and the most probable classes, most probable first.

    CSV has a line a photo: label, probability, next label, its probability, …

    Raises:
        BadRequest: 406 where the client takes neither JSON nor CSV.
    """
    kind = _negotiate(accept)
    probabilities = np.exp(prediction.log_probabilities)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    ranked = [
        [(prediction.classes[index], float(row[index])) for index in best]
        for row, best in zip(probabilities, order, strict=True)
    ]
    if kind == CSV_TYPE:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([value for pair in best for value in pair] for best in ranked)
        return text.getvalue(), CSV_TYPE
    answers = [{"label": best[0][0], "probabilities": dict(best)} for best in ranked]
    return json.dumps({"predictions": answers}), JSON_TYPE


def _negotiate(accept: str | None) -> str:
    """The better liked of JSON and CSV in an Accept header such as `text/csv;q=0.5, */*;q=0.1`; JSON in doubt."""
    wanted: list[tuple[float, str]] = []
    for part in ((accept or "").strip() or "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        with contextlib.suppress(ValueError):  # a q that is no number: as if the kind were not named
            wanted.append((float(quality), kind))
    refused = {kind for weight, kind in wanted if weight <= 0}
    for weight, kind in sorted(wanted, key=lambda pair: -pair[0]):
        for answer, group in ((JSON_TYPE, "application/*"), (CSV_TYPE, "text/*")):
            if weight > 0 and kind in (answer, group, "*/*") and answer not in refused:
                return answer
    raise BadRequest(406, f"accept {accept!r}: answers are {JSON_TYPE} or {CSV_TYPE}")
