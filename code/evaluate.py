"""The packaged model on photos it never saw: what the gate looks at, and what the endpoint will do.

    python3 evaluate.py --model DIR --test DIR --output DIR

Unpacks model.tar.gz, loads the code inside it, and calls its four handlers on the photos' original bytes.
"""

import importlib
import json
import math
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shards
import workers
from contract import (
    EVALUATION_FILE,
    METRIC_ACCURACY,
    METRIC_TEST_LOSS,
    MODEL_ARCHIVE,
    MODEL_FILE,
    PREDICTIONS_FILE,
)
from failures import PROCESSING, UserError, run
from hyperparameters import Parser
from progress import Progress

# The code as well: where a module is missing, the endpoint has no other of that name beside it, but Evaluate has.
MODULES = ("inference", "photos", "networks", "contract", "failures")
NEEDED = ("model.onnx", "model.pt", *(f"code/{name}.py" for name in MODULES))
FACTS = {"classes", "preprocessing", "backbone", "weights", "hyperparameters"}  # of model.json


def unpack(folder: Path, target: Path) -> dict[str, Any]:
    """Unpack the archive and return its model.json.

    Raises:
        UserError: there is no archive, or it is not one that Train made.
    """
    path = folder / MODEL_ARCHIVE
    if not path.is_file():
        raise UserError(f"{folder} holds no {MODEL_ARCHIVE}: expected what Train left")
    try:
        with tarfile.open(path) as tar:
            tar.extractall(target, filter="data")
            assert tar.fileobj is not None
            while tar.fileobj.read(1 << 20):  # to the very end, where gzip keeps its checksum
                pass
        meta: dict[str, Any] = json.loads((target / MODEL_FILE).read_text())
        missing = [name for name in NEEDED if not (target / name).is_file()]
        if missing or not isinstance(meta, dict) or not meta.keys() >= FACTS:
            raise ValueError(f"{missing[0] if missing else f'the whole of {MODEL_FILE}'} is missing")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is not an archive that Train made: {error}") from None
    return meta


def handlers(code: Path) -> ModuleType:
    """inference.py of the archive, with the archive's own modules around it, not those beside this script."""
    sys.path[0] = str(code)
    module = importlib.import_module("inference")
    strangers = [name for name in ("inference", "photos") if Path(str(sys.modules[name].__file__)).parent != code]
    if strangers:
        raise RuntimeError(f"{strangers} were imported from outside the archive")
    return module


def _load(inference: ModuleType, folder: Path, source: Path) -> Any:
    """The model that the archive holds."""
    try:
        return inference.model_fn(str(folder))
    except MemoryError:
        raise
    except Exception as error:  # of whichever engine: ONNX Runtime has a dozen types of its own
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the model in {source / MODEL_ARCHIVE} cannot be loaded ({reason}); run Train again"
        ) from error


def predict(photo: shards.Photo, inference: ModuleType, model: Any, label: int) -> tuple[float, int, dict[str, Any]]:
    """(cross-entropy, index of the predicted class, the answer) for one photo, through all four handlers."""
    try:
        prediction = inference.predict_fn(inference.input_fn(photo.read(), "application/x-image"), model)
    except inference.BadRequest as error:
        raise UserError(f"the packaged model refuses {photo.name}, which Split could read: {error}") from None
    text, _ = inference.output_fn(prediction, "application/json")
    answer = json.loads(text)["predictions"][0]
    return -float(prediction.log_probabilities[0, label]), model.classes.index(answer["label"]), answer


def measure(
    losses: Sequence[float], truth: Sequence[int], predicted: Sequence[int], classes: list[str]
) -> dict[str, Any]:
    """The metrics, in the form of SageMaker's model quality reports.

    Precision, recall and F1 are means over classes, weighted by how many photos each has; a class never predicted has
    precision 0.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (np.asarray(truth), np.asarray(predicted)), 1)
    right = np.diag(confusion).astype(np.float64)
    actual, claimed = confusion.sum(1), confusion.sum(0)
    recall, precision = _ratio(right, actual), _ratio(right, claimed)
    f1 = _ratio(2 * precision * recall, precision + recall)
    share = actual / actual.sum()
    figures = {
        "accuracy": right.sum() / len(losses),
        "test_loss": math.fsum(losses) / len(losses),
        "weighted_precision": float(share @ precision),
        "weighted_recall": float(share @ recall),
        "weighted_f1": float(share @ f1),
    }
    table = {
        name: {other: int(count) for other, count in zip(classes, row, strict=True)}
        for name, row in zip(classes, confusion, strict=True)
    }
    return {
        "multiclass_classification_metrics": {
            **{name: {"value": float(value), "standard_deviation": "NaN"} for name, value in figures.items()},
            "confusion_matrix": table,
        },
        "per_class": {
            name: {"photos": int(actual[i]), "accuracy": float(recall[i]), "precision": float(precision[i])}
            for i, name in enumerate(classes)
        },
    }


def _ratio(part: NDArray[np.float64], whole: NDArray[Any]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio


def main() -> None:
    """Evaluate the model that the options name."""
    parser = Parser(__doc__)
    processing = Path("/opt/ml/processing")
    parser.add_argument("--model", type=Path, default=processing / "input/model", help=f"folder with {MODEL_ARCHIVE}")
    parser.add_argument("--test", type=Path, default=processing / "input/test", help="shards of the test side")
    parser.add_argument("--output", type=Path, default=processing / "evaluation", help=f"folder for {EVALUATION_FILE}")
    options = parser.parse()
    index = shards.index(options.test)
    classes = shards.classes(options.test)
    label_of = {name: label for label, name in enumerate(classes)}
    with tempfile.TemporaryDirectory() as folder:
        meta = unpack(options.model, Path(folder))
        if meta["classes"] != classes:
            raise UserError(f"the model knows {len(meta['classes'])} other classes than the test side's {len(classes)}")
        inference = handlers(Path(folder).resolve() / "code")
        model = _load(inference, Path(folder), options.model)
        print(f"{len(index)} photos, {len(classes)} classes, served by {model.engine}", flush=True)
        evaluate(index, label_of, inference, model, meta, options.output)


def evaluate(
    index: list[shards.Photo],
    label_of: dict[str, int],
    inference: ModuleType,
    model: Any,
    meta: dict[str, Any],
    output: Path,
) -> None:
    """Predict every photo, print the metrics and write the two files."""
    truth = [label_of[photo.label] for photo in index]
    losses: list[float] = []
    predicted: list[int] = []
    progress = Progress("evaluated", len(index))
    output.mkdir(parents=True, exist_ok=True)
    task = partial(predict, inference=inference, model=model)
    # Threads share the one model: Pillow, ONNX Runtime and PyTorch leave Python's lock while they compute.
    with ThreadPoolExecutor(workers.cores()) as pool, (output / PREDICTIONS_FILE).open("w") as file:
        for chunk in workers.batches(zip(index, truth, strict=True), 256):
            for (photo, _), (loss, label, answer) in zip(
                chunk, pool.map(lambda pair: task(pair[0], label=pair[1]), chunk), strict=True
            ):
                losses.append(loss)
                predicted.append(label)
                file.write(json.dumps({"photo": photo.name, "loss": loss, **answer}) + "\n")
            progress.add(len(chunk))
    report = measure(losses, truth, predicted, list(label_of))
    metrics = report["multiclass_classification_metrics"]
    test_loss, accuracy = metrics["test_loss"]["value"], metrics["accuracy"]["value"]
    if not math.isfinite(test_loss):
        raise UserError(f"the test loss is {test_loss}: the model is not fit for use; train it with a smaller lr")
    print(f"{METRIC_TEST_LOSS}: {test_loss:.6f}\n{METRIC_ACCURACY}: {accuracy:.6f}", flush=True)
    model_facts = {name: meta[name] for name in ("backbone", "weights", "hyperparameters")}
    report = {**report, "photos": len(index), "classes": list(label_of), "engine": model.engine, "model": model_facts}
    (output / EVALUATION_FILE).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    run(main, PROCESSING)
