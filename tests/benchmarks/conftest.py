"""A few photos for the benchmarks to start from, and the way they are run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import measure


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six smooth pictures of 160x120."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def run_benchmark(name: str, *arguments: object) -> dict[str, Any]:
    """The object that a benchmark prints with --json: that, and nothing else."""
    _, output = measure.run(["-m", f"benchmarks.{name}", "--json", *map(str, arguments)])
    assert output.count("\n") == 1
    result: dict[str, Any] = json.loads(output)
    assert result["machine"]["cores"] >= 1
    return result
