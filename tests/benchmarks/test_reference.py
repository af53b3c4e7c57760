"""The reference recipe, its costs and the dataset it is measured on."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import dataset, reference_recipe
from tests.benchmarks.conftest import run_benchmark


def test_reference_recipe(photos: Path) -> None:
    sizes = ("--count", 40, "--classes", 2, "--limit", 8, "--eval-limit", 4, "--image-size", 32)
    plan = ("--trials", 1, "--epochs", 1, "--final-epochs", 1)
    result = run_benchmark("reference_recipe", "--photos", photos, *sizes, *plan)
    assert result["photos"] == {"train": 32, "valid": 4, "test": 4}
    assert result["fixed_s_per_process"] > 0
    assert result["cpu_s_at_8351"] > result["cpu_s_all_photos"] > 0
    assert 0 <= result["test"]["accuracy"] <= 1


def test_total_counts_every_pass() -> None:
    costs = reference_recipe.Costs(process=1000, loader_start=100, train=1, eval=0.1)
    plan = reference_recipe.Plan(trials=4, epochs=2, final_epochs=5)
    # Five processes; 13 epochs, each a pass over train and one over valid; one over test.
    assert costs.total(plan, dataset.Sizes(10, 2, 3)) == pytest.approx(5000 + 2700 + 130 + 2.6 + 0.3)


def test_costs_come_from_a_job() -> None:
    report = {
        "cpu_s": {"loader_start": 1.0, "train": 22.0, "eval": 13.0},
        "photo_passes": {"train": 10, "eval": 5},
        "epochs": [{}, {}],
        "test": {},
    }
    assert reference_recipe.costs_of(40, report) == reference_recipe.Costs(4.0, 1.0, 2.0, 2.0)


def test_the_dataset_has_the_dogs_proportions_and_every_class_on_every_side(photos: Path, tmp_path: Path) -> None:
    assert dataset.sizes_of(8351) == dataset.DOGS
    sizes = dataset.sizes_of(50)
    dataset.make(photos, tmp_path / "all", sizes, classes=3)
    assert dataset.measured(tmp_path / "all") == sizes
    assert {path.parent.name for path in dataset.find(tmp_path / "all" / "test")} == {f"class00{i}" for i in range(3)}
    files = dataset.find(tmp_path / "all")
    assert len({path.read_bytes() for path in files}) == 50
    with Image.open(files[0]) as image:
        assert image.size == dataset.SIZE
    dataset.shrink(tmp_path / "all", tmp_path / "few", dataset.Sizes(8, 2, 2), classes=2)
    assert dataset.measured(tmp_path / "few") == dataset.Sizes(8, 2, 2)


def test_too_few_photos_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 photos are too few for 5 classes"):
        dataset.make(photos, tmp_path, dataset.sizes_of(20), classes=5)
