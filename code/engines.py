"""The frozen backbone as a function of pixels, float32 [N, 3, S, S] -> float32 [N, D]: in which engine, how precise.

On a CPU the backbone becomes a graph that every worker process runs on a core of its own (ONNX Runtime; OpenVINO where
it is installed and faster); otherwise, and on a GPU, it is PyTorch's in the main process. Measured by
benchmarks/embed.py. A photo's features do not depend on the other photos of its batch.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from failures import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

ENGINES = ("auto", "torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16")

Pixels = NDArray[np.float32]
Run = Callable[[Pixels], NDArray[np.float32]]


@dataclass(frozen=True)
class Graph:
    """A backbone on disk that a worker process can run; small, for it is pickled with every task."""

    path: str
    engine: str
    precision: str

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Features, on this process' one thread."""
        return _session(self)(pixels)


def choose(engine: str, precision: str, device: str) -> str:
    """The engine to use.

    Args:
        engine: one of `ENGINES`; `auto` is the fastest that is installed: ONNX Runtime for fp32, OpenVINO for bf16,
            PyTorch otherwise and on a GPU.
        precision: one of `PRECISIONS`.
        device: `cpu` or `cuda`.

    Raises:
        UserError: the engine is not installed or cannot do that, or the processor has no bf16.
    """
    if precision == "bf16" and not has_bf16(device):
        raise UserError(f"precision bf16: this {device} cannot compute in bf16; set precision to fp32")
    if device != "cpu":
        if engine not in ("auto", "torch"):
            raise UserError(f"engine {engine} runs on a CPU only, and this job has a GPU: set engine to auto or torch")
        return "torch"
    if engine == "auto":
        wanted = "openvino" if precision == "bf16" else "onnxruntime"
        return wanted if _installed(wanted) else "torch"
    if engine != "torch" and not _installed(engine):
        raise UserError(f"engine {engine} is not installed here: install it, or set engine to auto")
    if engine == "onnxruntime" and precision == "bf16":
        raise UserError("engine onnxruntime cannot compute in bf16 on a CPU: set engine to auto, openvino or torch")
    return engine


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16; emulated it would be slower than fp32."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def export(network: "nn.Module", photos: "Tensor", path: Path, output: str) -> None:
    """Write a network, in eval mode, as an ONNX graph from `photos`, float32 [n, 3, S, S] for any n, to `output`.

    Args:
        network: to be traced.
        photos: an example, [2, 3, S, S].
        path: of the file.
        output: the name of what comes out.
    """
    import torch

    with warnings.catch_warnings():  # of the older exporter's retirement; the newer needs onnxscript, in no container
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (photos,),
            path,
            input_names=["photos"],
            output_names=[output],
            dynamic_axes={"photos": {0: "n"}, output: {0: "n"}},
            opset_version=17,
            dynamo=False,
        )


def graph(network: "nn.Module", image_size: int, engine: str, precision: str, folder: Path) -> Graph:
    """Export the backbone, in eval mode, for workers to run; the file lies in `folder`."""
    import torch

    path = folder / "backbone.onnx"
    export(network, torch.zeros(2, 3, image_size, image_size), path, "features")
    return Graph(str(path), engine, precision)


@lru_cache(maxsize=1)
def _session(graph: Graph) -> Run:
    return _openvino(graph) if graph.engine == "openvino" else _onnxruntime(graph)


def _onnxruntime(graph: Graph) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> NDArray[np.float32]:
        features: NDArray[np.float32] = session.run(["features"], {"photos": np.ascontiguousarray(pixels)})[0]
        return features

    return run


def _openvino(graph: Graph) -> Run:
    import openvino

    core = openvino.Core()
    # Its own default lets it compute in bf16 wherever the processor can.
    hint = {"fp32": "f32", "bf16": "bf16"}[graph.precision]
    config = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(graph.path, "CPU", config).create_infer_request()

    def run(pixels: Pixels) -> NDArray[np.float32]:
        features: NDArray[np.float32] = np.array(request.infer({0: np.ascontiguousarray(pixels)})[0])
        return features

    return run


def torch_run(network: "nn.Module", precision: str, device: str) -> Run:
    """The backbone in PyTorch, convolution and BatchNorm fused, channels last."""
    import torch

    import networks

    fast: Any = networks.fused(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(pixels: Pixels) -> NDArray[np.float32]:
        batch = torch.from_numpy(pixels)
        if device == "cuda":
            batch = batch.pin_memory().to(device, non_blocking=True)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            features: NDArray[np.float32] = fast(batch).float().cpu().numpy()
            return features

    return run
