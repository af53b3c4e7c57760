"""What leaves the training job: SageMaker packs SM_MODEL_DIR into model.tar.gz, and that is all serving needs.

model.pt  model.onnx  model.json  config.yaml  code/inference.py and the modules it imports  code/requirements.txt
"""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import engines
from contract import MODEL_FILE
from networks import Classifier

HERE = Path(__file__).resolve().parent
SERVING = ("inference.py", "photos.py", "networks.py", "contract.py", "failures.py", "serve_app.py")
TOLERANCE = 1e-4  # of a probability, between PyTorch and ONNX Runtime; they sum in another order, no more


def export(network: Classifier, meta: dict[str, Any], batch: NDArray[np.float32], folder: Path) -> None:
    """Write the archive's files.

    Args:
        network: with its standardisation folded into the head.
        meta: becomes model.json, versions added.
        batch: float32 [N, 3, S, S] of real photos, on which both forms of the network must agree.
        folder: SM_MODEL_DIR.

    Raises:
        RuntimeError: the ONNX graph gives other probabilities than the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = network.cpu().eval()
    difference = _export_onnx(network, batch, folder / "model.onnx")
    print(f"model.onnx agrees with PyTorch on {len(batch)} photos: probabilities within {difference:.1e}", flush=True)
    torch.save(network.state_dict(), folder / "model.pt")
    packages = ("torch", "torchvision", "numpy", "pillow", "onnxruntime")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    (folder / MODEL_FILE).write_text(json.dumps({**meta, "versions": versions}, indent=1))
    shutil.copyfile(HERE / "config.yaml", folder / "config.yaml")
    code = folder / "code"
    code.mkdir(exist_ok=True)
    for name in SERVING:
        shutil.copyfile(HERE / name, code / name)
    shutil.copyfile(HERE / "serving-requirements.txt", code / "requirements.txt")


def _export_onnx(network: Classifier, batch: NDArray[np.float32], path: Path) -> float:
    """Write the graph and return the largest difference between probabilities."""
    import onnxruntime

    photos = torch.from_numpy(np.ascontiguousarray(batch))
    engines.export(network, photos[:1].repeat(2, 1, 1, 1), path, "logits")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = network(photos).softmax(1).numpy()
    given = torch.from_numpy(session.run(["logits"], {"photos": photos.numpy()})[0]).softmax(1).numpy()
    difference = float(np.abs(expected - given).max())
    if not difference <= TOLERANCE:
        path.unlink()
        raise RuntimeError(
            f"the ONNX graph's probabilities differ from PyTorch's by {difference:.1e}, over {TOLERANCE:g}"
        )
    return difference
