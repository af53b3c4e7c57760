"""Settings: presets load, and every mistake is told in one line with the way out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import settings
from pipelines.contract import ROOT
from pipelines.settings import PARAMETERS, Categorical, Continuous, Settings, SettingsError, load

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))


def refused(config: Path | None = None, **overrides: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load(config, overrides)
    return str(error.value)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_its_values_arrive(preset: Path) -> None:
    import yaml

    written = yaml.safe_load(preset.read_text())
    loaded = load(preset)
    assert loaded.model_fields_set == set(written)
    for name in ("name", "backbone", "epochs", "trials", "test_loss_threshold"):
        assert getattr(loaded, name) == written.get(name, Settings.model_fields[name].default)


def test_the_presets_are_pipelines_of_their_own() -> None:
    assert len(PRESETS) >= 3
    assert len({load(preset).name for preset in PRESETS}) == len(PRESETS)


def test_every_field_is_described_and_every_parameter_has_one() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert set(PARAMETERS.values()) <= set(Settings.model_fields)


def test_overrides_go_before_the_preset_and_are_read_as_yaml() -> None:
    loaded = load(
        ROOT / "configs/demo.yaml",
        {"epochs": "3", "lr": "[1e-3, 0.1]", "batch_size": "16", "weights": "123", "debugger": "off"},
    )
    assert (loaded.epochs, loaded.weights, loaded.debugger) == (3, "123", "off")
    assert loaded.lr == Categorical(values=[0.001, 0.1])
    assert loaded.batch_size == Categorical(values=[16])
    assert loaded.trials == 4  # the preset's
    assert load(None, {"lr": "{min: 1e-3, max: 0.1, scale: log}"}).lr == Continuous(min=0.001, max=0.1, scale="log")


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_a_range_is_taken_if_and_only_if_it_has_two_ends_in_order(low: float, high: float) -> None:
    text = f"{{min: {low!r}, max: {high!r}}}"
    if low < high:
        assert load(None, {"lr": text}).lr == Continuous(min=low, max=high)
    else:
        assert refused(lr=text).startswith("the command line: lr")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("epochs", "many", "epochs = 'many': input should be a valid integer"),
        ("epochs", "0", "greater than or equal to 1"),
        ("epochs", "2.5", "epochs = 2.5"),
        ("valid_fraction", "0.5", "less than 0.5"),
        ("name", "Dog Breeds", "name = 'Dog Breeds'"),
        ("account", "12345", "account = '12345'"),
        ("backbone", "resnet19", "did you mean resnet18"),
        ("backbone", "zzz", "there are: alexnet, "),
        ("strategy", "Sobol", "'Random', 'Grid', 'Bayesian' or 'Hyperband'"),
        ("weight_decay", "[-1]", "weight_decay takes 0 to 100, not -1"),
        ("label_smoothing", "[0, 1]", "label_smoothing takes 0 to 0.99, not 1"),
        ("views", "[0, 4]", "views must be at most augmented_views (0), not 4"),
        ("views", "[-1]", "views takes 0 and above, not -1"),
        ("strategy", "Grid", "strategy Grid needs lists of values"),
        ("lr", "fast", "expected a list of values such as [0.001, 0.1]"),
        ("lr", "[]", "at least 1 item"),
        ("lr", "[0]", "lr must be above 0"),
        ("lr", "{min: 0.1, max: 0.01}", "min (0.1) must be below max (0.01)"),
        ("lr", "{min: 0, max: 1, scale: log}", "a log scale needs min > 0"),
        ("batch_size", "[1.5]", "batch_size takes whole numbers"),
        ("resize_size", "100", "must be 0 or at least image_size (224)"),
        ("training_instance_type", "large", "training_instance_type = 'large'"),
        ("epochs", "[1, ", "--set epochs=[1, : not a value YAML can read"),
        ("epoch", "3", "unknown field 'epoch'; did you mean epochs?"),
        ("colour", "red", "unknown field 'colour'; there are: account, "),
    ],
)
def test_a_wrong_value_is_told_in_one_line(field: str, value: str, named: str) -> None:
    message = refused(**{field: value})
    assert named in message
    assert "\n" not in message


def test_all_mistakes_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 0\nvolume_gb: 1\n")
    lines = refused(config, trials="0").splitlines()
    assert len(lines) == 3
    assert sum(line.startswith(f"{config}: ") for line in lines) == 2
    assert sum(line.startswith("the command line: trials = 0") for line in lines) == 1


def test_one_value_is_checked_as_load_would() -> None:
    settings.check("epochs", "3", "-p Epochs")
    with pytest.raises(SettingsError, match=r"^-p Epochs: epochs = 0: "):
        settings.check("epochs", "0", "-p Epochs")


@pytest.mark.parametrize(
    ("region", "partition"), [("us-east-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
def test_arns_are_the_regions(region: str, partition: str) -> None:
    loaded = load(None, {"region": region, "role": "Jobs", "account": "123456789012"})
    assert loaded.role_arn == f"arn:{partition}:iam::123456789012:role/Jobs"
    assert loaded.base_uri == f"s3://sagemaker-{region}-123456789012/dogbreed"
    whole = "arn:aws:iam::999999999999:role/Theirs"
    assert load(None, {"role": whole}).role_arn == whole
    assert load(None, {"bucket": "mine"}).base_uri == "s3://mine/dogbreed"


def test_a_grid_has_as_many_trials_as_combinations() -> None:
    assert load(None, {"strategy": "Grid", "lr": "[0.1, 0.2, 0.3]", "batch_size": "[8, 16]"}).planned_trials == 6
    assert load(None, {"trials": "5"}).planned_trials == 5


def test_the_backbones_are_torchvisions() -> None:
    import torchvision

    from pipelines.backbones import NAMES

    assert list(NAMES) == torchvision.models.list_models(module=torchvision.models)
