import json
import os
import pickle
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import networks
from failures import UserError

BACKBONES = ["resnet18", "resnet50", "mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0"]


def weights_file(folder: Path, state: object, name: str = "weights.pth") -> networks.Weights:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    return networks.find_weights(folder)


def network_with_lively_norms(backbone: str, classes: int = 1000) -> nn.Module:
    """Fresh BatchNorms are the identity, and a mistake in them would not show."""
    torch.manual_seed(7)
    network: nn.Module = torchvision.models.get_model(backbone, weights=None, num_classes=classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_cut_network_gives_what_the_classifier_saw(backbone: str, tmp_path: Path) -> None:
    whole = network_with_lively_norms(backbone)
    photos = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cut, feature_dim = networks.load(backbone, 64, weights_file(tmp_path / "weights", whole.state_dict()))
    with torch.inference_mode():
        features = cut(photos)
        assert features.shape == (2, feature_dim)
        if backbone == "squeezenet1_1":  # its classifier is not linear in the mean, which is what is kept
            assert torch.allclose(features, whole.features(photos).mean((2, 3)), atol=1e-5)
        else:
            last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
            assert torch.allclose(last(features), whole(photos), atol=1e-4)
        fused = networks.fused(cut)
        assert torch.allclose(fused(photos), features, atol=1e-4 * float(features.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_a_classifier_of_other_classes_does_not_matter(tmp_path: Path) -> None:
    whole = network_with_lively_norms("resnet18", classes=7)
    network, feature_dim = networks.load("resnet18", 32, weights_file(tmp_path / "weights", whole.state_dict()))
    assert feature_dim == 512
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], whole.state_dict()["layer4.1.conv2.weight"])


def test_weights_without_a_classifier_load(tmp_path: Path) -> None:
    state = networks.create("resnet18", 32)[0].state_dict()
    assert networks.load("resnet18", 32, weights_file(tmp_path / "weights", state))[1] == 512


def test_random_weights_are_a_function_of_the_seed_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def features(seed: int) -> torch.Tensor:
        (tmp_path / "random.json").write_text(json.dumps({"init": "random", "seed": seed}))
        network, _ = networks.load("resnet18", 32, networks.find_weights(tmp_path))
        with torch.inference_mode():
            return network(torch.ones(1, 3, 32, 32))

    assert torch.equal(features(3), features(3))
    assert not torch.equal(features(3), features(4))
    assert "RANDOM weights (seed 4), not pretrained ones" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "hint"), [("resnet-18", "did you mean resnet18"), ("ResNet18", "resnet18"), ("", "")])
def test_an_unknown_backbone_names_the_right_ones(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="is not a torchvision classification model") as error:
        networks.create(name, 224)
    assert hint in str(error.value)
    assert "choices: alexnet, convnext_base" in str(error.value)


def test_pictures_too_small_for_a_network_are_refused() -> None:
    with pytest.raises(UserError, match="backbone alexnet cannot take pictures of 32x32 pixels: "):
        networks.create("alexnet", 32)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "weights", network_with_lively_norms("squeezenet1_1").state_dict())
    with pytest.raises(UserError, match=r"weights\.pth are not those of resnet18 \(\d+ keys missing: conv1\.weight"):
        networks.load("resnet18", 32, weights)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "weights", network_with_lively_norms("wide_resnet50_2").state_dict())
    with pytest.raises(UserError, match=r"not those of resnet50 \(\d+ keys of another shape: layer1.0.conv1.weight is"):
        networks.load("resnet50", 32, weights)


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, form: str) -> None:
    state = {"layer": Malicious(tmp_path / "owned")}
    if form == "torch":
        weights = weights_file(tmp_path / "weights", state)
    else:
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / "weights.pth").write_bytes(pickle.dumps(state))
        weights = networks.find_weights(tmp_path / "weights")
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded .*; expected a state dict") as error:
        networks.load("resnet18", 32, weights)
    assert not (tmp_path / "owned").exists()
    assert "weights_only" not in str(error.value)  # no advice to run it after all


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text file\n", b"\x89PNG\r\n", b"PK\x03\x04 not a zip", b"\x80"]
)
def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"the weights weights\.pth cannot be loaded"):
        networks.load("resnet18", 32, networks.find_weights(tmp_path))


@pytest.mark.parametrize("state", [[1, 2], {"model": {"weight": 1}}, torch.ones(3)])
def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path, state: object) -> None:
    with pytest.raises(UserError, match=r"weights\.pth hold a (list|dict|Tensor) of other things; expected"):
        networks.load("resnet18", 32, weights_file(tmp_path / "weights", state))


STATE = OrderedDict(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict())


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.data())
def test_damaged_weights_are_one_clear_error(new_format: bool, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        torch.save(STATE, path, _use_new_zipfile_serialization=new_format)
        damaged = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 5))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        # It is no resnet18 in any case: unreadable, or readable and of another network.
        with pytest.raises(UserError, match=r"the weights weights\.pth "):
            networks.load("resnet18", 32, networks.find_weights(Path(folder)))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "nothing"),
        (["a.pth", "b.pth"], "a.pth, b.pth"),
        (["random.json", "b.pth"], "b.pth, random.json"),
        (["weights.h5"], "weights.h5"),
        ([".hidden.pth"], "nothing"),
    ],
)
def test_the_weights_folder_holds_one_file(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"holds {found}: expected exactly one file, \*\.pth or random\.json"):
        networks.find_weights(tmp_path)


def test_a_missing_weights_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds nothing: expected exactly one file"):
        networks.find_weights(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{}", '{"seed": "x"}', '{"seed": -1}', '{"seed": true}', '{"seed": 1.5}']
)
def test_a_bad_seed_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "random.json").write_text(text)
    with pytest.raises(UserError, match=r'random\.json is not of the form \{"init": "random", "seed": 0\}'):
        networks.find_weights(tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-100, 100), st.floats(0.001, 100))
def test_folding_the_standardisation_leaves_the_logits(seed: int, mean: float, scale: float) -> None:
    torch.manual_seed(seed)
    network = networks.Classifier(nn.Identity(), nn.Linear(6, 3))
    network.mean.copy_(mean + torch.randn(6))
    network.inverse_std.copy_(scale * torch.rand(6))
    network.inverse_std[0] = 0  # a feature that is left out
    features = network.mean + torch.randn(5, 6) / scale
    with torch.inference_mode():
        before = network(features)
        network.fold()
        assert torch.allclose(network(features), before, atol=1e-3, rtol=1e-3)
    assert torch.equal(network.inverse_std, torch.ones(6))
    assert not network.mean.any()
