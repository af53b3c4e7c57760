"""The backbone's forward alone, in each engine and precision: how fast, how near the hardware's limit, how exact.

    python -m benchmarks.embed [--backbone resnet18 --batches 4 --photos DIR]

CPU milliseconds a photo on one thread, per cent of the register peak that is measured in turn with it, and the error
of the features relative to plain eager PyTorch in fp32. With --photos also what decoding and cropping costs.
"""

import argparse
import importlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import dataset, measure

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Peak = dict[str, float]
"""GFLOP/s of one thread by precision; 0 where there is none."""
MATMUL = 1536  # side of the matrices where there is no C compiler
PEAK_STEPS = 10_000_000


def build_peak(folder: Path) -> Callable[[], Peak]:
    """What measures the register peak: a C loop, where a compiler is found; else matrix products, a lower bound."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return _matmul_peak
    program = folder / "peak"
    source = Path(__file__).with_name("peak.c")
    flags = ["-O3", "-march=native", "-ffp-contract=fast"]
    built = subprocess.run([compiler, *flags, str(source), "-o", str(program)], capture_output=True)
    if built.returncode:
        return _matmul_peak

    def loop() -> Peak:
        printed = subprocess.run([program, str(PEAK_STEPS)], capture_output=True, text=True, check=True).stdout
        fp32, bf16, _ = map(float, printed.split())
        return {"fp32": fp32, "bf16": bf16}

    return loop


def _matmul_peak() -> Peak:
    found = {"fp32": 0.0, "bf16": 0.0}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
            continue
        matrix = torch.ones(MATMUL, MATMUL, dtype=dtype)
        matrix @ matrix
        begin = time.thread_time()
        matrix @ matrix
        found[name] = 2 * MATMUL**3 / (time.thread_time() - begin) / 1e9
    return found


def runs(code: Path, network: torch.nn.Module, size: int, folder: Path) -> tuple[dict[str, Run], dict[str, str]]:
    """The backbone in every engine and precision that runs here, by `ENGINE PRECISION`; and why the others do not."""

    @torch.inference_mode()
    def eager(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = network(torch.from_numpy(pixels)).numpy()
        return features

    found: dict[str, Run] = {"eager fp32": eager}
    missing: dict[str, str] = {}
    if not (code / "engines.py").is_file():
        return found, {"all others": "this code has no engines.py"}
    engines: Any = importlib.import_module("engines")
    for engine in engines.ENGINES[1:]:
        for precision in engines.PRECISIONS:
            name = f"{engine} {precision}"
            try:
                engines.choose(engine, precision, "cpu")
            except ValueError as error:  # code/failures.py's UserError
                missing[name] = str(error)
                continue
            if engine == "torch":
                found[name] = engines.torch_run(network, precision, "cpu")
            else:
                place = folder / name.replace(" ", "-")
                place.mkdir()
                found[name] = engines.graph(network, size, engine, precision, place)
    return found, missing


def cpu_ms(run: Run, batch: NDArray[np.float32], batches: int) -> float:
    """CPU milliseconds a photo. The first batch does not count: an engine may have to get ready."""
    run(batch)
    begin = measure.own_cpu_seconds()
    for _ in range(batches):
        run(batch)
    return (measure.own_cpu_seconds() - begin) / (batches * len(batch)) * 1000


def decoding(photos: Any, spec: Any, files: list[Path]) -> float:
    """CPU milliseconds a photo from the file's bytes to the network's input, evaluation view."""
    begin = measure.own_cpu_seconds()
    for path in files:
        photos.normalise(photos.centre_crop(photos.decode(path.read_bytes()), spec)[None], spec)
    return (measure.own_cpu_seconds() - begin) / len(files) * 1000


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all of them, in turn."""
    code = options.code.resolve()
    sys.path.insert(0, str(code))
    networks: Any = importlib.import_module("networks")
    photos: Any = importlib.import_module("photos")
    torch.set_num_threads(options.threads)
    network, _ = networks.create(options.backbone, options.image_size)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.from_numpy(batch[:1]))
    gflop = counter.get_total_flops() / 1e9
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peak = build_peak(folder)
        found, missing = runs(code, network, options.image_size, folder)
        expected = found["eager fp32"](batch)
        errors = {
            name: float(np.linalg.norm(run(batch) - expected) / np.linalg.norm(expected)) for name, run in found.items()
        }
        times: dict[str, list[float]] = {name: [] for name in found}
        peaks: list[Peak] = []
        for _ in range(options.repeats):
            peaks.append(peak())
            for name, run in found.items():
                times[name].append(cpu_ms(run, batch, options.batches))
                measure.say(f"{name}: {times[name][-1]:.1f} ms a photo")
    tops = {name: statistics.median(each[name] for each in peaks) for name in ("fp32", "bf16")}
    rows = {}
    for name, values in times.items():
        ms, top = statistics.median(values), tops[name.split()[1]]
        share = gflop / ms * 1000 / top * 100 if top else None
        rows[name] = {"cpu_ms_per_photo": ms, "percent_of_peak": share, "relative_error": errors[name]}
    result: dict[str, Any] = {
        "engines": rows,
        "unavailable": missing,
        "gflop_per_photo": gflop,
        "peak_gflops_per_thread": tops,
        "peak_is": "a lower bound: fp32 matrix products" if peak is _matmul_peak else "a C loop of FMAs on registers",
        "notes": [f"{name} was not measured: {why}." for name, why in missing.items()],
    }
    if options.photos is not None:
        files = dataset.find(options.photos)
        if not files:
            raise ValueError(f"{options.photos} holds no photos")
        spec = photos.Preprocessing(options.image_size * 256 // 224, options.image_size)
        result["decode_cpu_ms_per_photo"] = decoding(photos, spec, files[:: max(1, len(files) // 200)][:200])
    return result | {"machine": measure.machine()}


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result for people."""
    rows: list[tuple[str, ...]] = [("engine", "CPU ms a photo", "% of peak", "relative error")]
    for name, row in result["engines"].items():
        share = "-" if row["percent_of_peak"] is None else f"{row['percent_of_peak']:.0f}"
        rows.append((name, f"{row['cpu_ms_per_photo']:.1f}", share, f"{row['relative_error']:.1e}"))
    if "decode_cpu_ms_per_photo" in result:
        rows.append(("decoding and cropping", f"{result['decode_cpu_ms_per_photo']:.1f}", "", ""))
    for name, value in result["peak_gflops_per_thread"].items():
        rows.append((f"peak {name}, {result['peak_is']}", f"{value:.0f} GFLOP/s", "", ""))
    return rows


def main() -> None:
    """Measure what the options name."""
    parser = measure.parser(__doc__)
    parser.add_argument("--code", type=Path, default=measure.CODE, help="folder with the scripts to measure")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--image-size", type=measure.positive, default=224, help="side of the input, pixels")
    parser.add_argument("--batch-size", type=measure.positive, default=32, help="photos a forward pass")
    parser.add_argument("--batches", type=measure.positive, default=4, help="forward passes a measurement")
    parser.add_argument("--repeats", type=measure.positive, default=3, help="measurements of each, in turn")
    parser.add_argument("--photos", type=Path, help="photos to measure decoding on")
    options = parser.parse_args()
    try:
        result = bench(options)
    except ValueError as error:
        parser.error(str(error))
    measure.show(result, table(result), options.json)


if __name__ == "__main__":
    main()
