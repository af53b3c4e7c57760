"""Both recipes side by side, and the arithmetic between what is measured and what is claimed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare, dataset, reference_recipe
from benchmarks.compare import Job
from tests.benchmarks.conftest import run_benchmark

RATIOS = {"ratio_k0_fp32", "ratio_k4_fp32", "ratio_k0_bf16", "ratio_k4_bf16"}


@given(st.floats(0, 100), st.floats(0, 1), st.integers(1, 1000), st.integers(1, 10_000))
def test_a_line_is_found_again(fixed: float, photo: float, small: int, more: int) -> None:
    truth = compare.Line(fixed, photo)
    found = compare.line(truth.at(small), truth.at(small + more), (small, small + more))
    assert found.at(8351) == pytest.approx(truth.at(8351), rel=1e-6, abs=1e-4)


def test_a_cost_that_falls_with_the_photos_is_fixed() -> None:
    assert compare.line(3.0, 2.5, (10, 80)) == compare.Line(2.5, 0.0)


def test_total_runs_every_trial_and_the_rest_once() -> None:
    costs = {Job("split.py"): 1.0, Job("embed.py", 4, "bf16"): 10.0, Job("hpo.py", 4, epochs=2): 100.0}
    costs |= {Job("train.py", 4, epochs=5): 1000.0, Job("evaluate.py"): 10_000.0}
    assert compare.total(costs, compare.PLAN, 4, "bf16") == 11_411


def test_the_two_take_turns() -> None:
    def nothing() -> None:
        pass

    def steps(names: str) -> list[compare.Step]:
        return [(name, nothing) for name in names]

    assert "".join(name for name, _ in compare.take_turns(steps("0123"), steps("rs"))) == "0r12s3"
    assert len(list(compare.take_turns(steps("0123"), steps("r" * 9)))) == 13


def test_figures() -> None:
    reference = reference_recipe.Costs(process=0, loader_start=0, train=1, eval=0)
    lines = {job: compare.Line(1, 0) for plan in (compare.PLAN, compare.GROWN) for _, job in jobs(plan)}
    lines[Job("embed.py", 0, "fp32")] = compare.Line(0, 0.01)
    means = {job: each.at(1000) for job, each in lines.items()}
    figures = compare.figures(reference, means, lines, dataset.sizes_of(1000), [(0, "fp32")])
    # Split, four trials, Train and Evaluate take a second each; the reference 13 seconds for every training photo.
    assert figures["raw_ratio_k0_fp32"] == pytest.approx(13 * 800 / (7 + 10))
    assert figures["ratio_k0_fp32"] == pytest.approx(13 * 6680 / (7 + 83.51))
    assert figures["growth_20x20"] == {"k0": pytest.approx(16 / (7 + 83.51)), "k4": None}
    assert figures["reference_growth_20x20"] == pytest.approx(420 / 13 - 1)
    assert figures["ratio_k4_bf16"] is None


def jobs(plan: reference_recipe.Plan) -> list[tuple[int, Job]]:
    return compare.jobs_of(plan, 0, "fp32")


def test_compare(photos: Path) -> None:
    sizes = ("--count", 60, "--classes", 2, "--reference-photos", 8, "--slices", 1, "--image-size", 32)
    result = run_benchmark("compare", "--photos", photos, "--quick", *sizes)
    assert result.keys() >= RATIOS | {"growth_20x20", "forwards", "forwards_expected"}
    assert result["growth_20x20"].keys() == {"k0", "k4"}
    assert result["raw_ratio_k0_fp32"] > 0
    counted = {name: forwards for name, forwards in result["forwards"].items() if forwards is not None}
    assert counted == {name: result["forwards_expected"][name] for name in counted}
    for name in RATIOS:
        assert (result[f"raw_{name}"] is None) == (name.removeprefix("ratio_") in result["unavailable"])
