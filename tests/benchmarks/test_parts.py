"""The benchmarks of single parts, at sizes where only their output counts."""

from pathlib import Path

import pytest

from benchmarks import measure
from tests.benchmarks.conftest import run_benchmark


def test_embed(photos: Path) -> None:
    sizes = ("--image-size", 32, "--batch-size", 2, "--batches", 1, "--repeats", 1)
    result = run_benchmark("embed", *sizes, "--photos", photos)
    assert result["engines"]["eager fp32"]["relative_error"] == 0
    for name, row in result["engines"].items():
        assert row["cpu_ms_per_photo"] > 0
        assert row["relative_error"] <= (1e-5 if name.endswith("fp32") else 2e-2)
    assert result["peak_gflops_per_thread"]["fp32"] > 1
    assert result["gflop_per_photo"] == pytest.approx(1.8142 * 2 / 49, rel=0.05)  # ResNet's paper: 1.8 GMAC at 224
    assert result["decode_cpu_ms_per_photo"] > 0


def test_head() -> None:
    sizes = ("--rows", 64, "--classes", 4, "--dim", 8, "--batch-sizes", 16, "--epochs", 1, "--repeats", 1)
    result = run_benchmark("head", *sizes)
    assert result["batch_sizes"]["16"].keys() == {"ours_s_per_epoch", "plain_s_per_epoch", "ours_process_s"}
    assert result["rows"] == {"train": 64, "valid": 8}


def test_startup() -> None:
    result = run_benchmark("startup", "--repeats", 1, "--modules", "json")
    assert result["cpu_s"].keys() >= {"import json", "run.py --help", "local service to its first answer"}
    assert min(result["cpu_s"].values()) > 0


@pytest.mark.parametrize(
    "name", ["compare", "dataset", "embed", "head", "reference_job", "reference_recipe", "startup"]
)
def test_the_docstring_is_the_command(name: str) -> None:
    text = (measure.ROOT / "benchmarks" / f"{name}.py").read_text()
    assert f"\n    python -m benchmarks.{name}" in text.split('"""')[1]


def test_the_readme_names_every_benchmark() -> None:
    readme = (measure.ROOT / "benchmarks" / "README.md").read_text()
    for path in (measure.ROOT / "benchmarks").glob("*.py"):
        if "__main__" in path.read_text():
            assert f"python -m benchmarks.{path.stem}" in readme
