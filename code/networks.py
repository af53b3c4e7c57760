"""Any torchvision classification network, cut into a backbone ([N, 3, S, S] -> [N, D]) and a linear head.

The cut is before the last linear layer, which is what a new set of classes replaces. Travels inside model.tar.gz, for
servers without ONNX Runtime.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from contract import RANDOM_WEIGHTS_FILE
from failures import UserError

# Auxiliary classifiers only matter to training from scratch. The pretrained weights of these two expect the input
# scaled their own way, which transform_input does.
_AUXILIARY = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
_AUXILIARY_KEYS = ("AuxLogits.", "aux1.", "aux2.")
# Names inside torchvision's densenet files are those of an old version; torchvision translates them in the same way.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


@dataclass(frozen=True)
class Weights:
    """What a backbone starts from: a file of pretrained weights, or a seed."""

    path: Path
    kind: str
    """`file` or `random`."""
    identity: dict[str, Any]
    """For features.json and model.json: `{"kind", "name", "sha256"}`, or `{"kind", "name", "seed"}`."""


class Classifier(nn.Module):
    """Backbone, standardisation of its features, linear head: [N, 3, S, S] -> logits [N, C].

    Standardisation is `(features - mean) * inverse_std`; `fold` merges it into the head.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.zeros(head.in_features), persistent=False)
        self.register_buffer("inverse_std", torch.ones(head.in_features), persistent=False)

    def forward(self, photos: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head((self.backbone(photos) - self.mean) * self.inverse_std)
        return logits

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the standardisation into the head, in double precision; the logits stay the same."""
        weight, bias = self.head.weight.double(), self.head.bias.double()
        weight = weight * self.inverse_std.double()
        self.head.bias.copy_(bias - weight @ self.mean.double())
        self.head.weight.copy_(weight)
        self.mean.zero_()
        self.inverse_std.fill_(1)


def choices() -> list[str]:
    """The names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def create(backbone: str, image_size: int, seed: int = 0) -> tuple[nn.Module, int]:
    """The network without its last linear layer, in eval mode, freshly initialised from `seed`; and the width D.

    Raises:
        UserError: no such network, or one that cannot take pictures of that size.
    """
    names = choices()
    if backbone not in names:
        close = difflib.get_close_matches(backbone, names, n=3)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise UserError(
            f"backbone {backbone!r} is not a torchvision classification model; {hint}choices: {', '.join(names)}"
        )
    options: dict[str, Any] = dict(_AUXILIARY.get(backbone, {}))
    if backbone.startswith("vit_"):
        options["image_size"] = image_size
    elif backbone == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    torch.manual_seed(seed)
    try:
        network: nn.Module = torchvision.models.get_model(backbone, weights=None, **options)
        feature_dim = _cut(network)
        network.eval()
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(1, 3, image_size, image_size)).shape)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"backbone {backbone} cannot take pictures of {image_size}x{image_size} pixels: {reason}"
        ) from error
    if shape != (1, feature_dim):
        raise UserError(
            f"backbone {backbone} gives {shape} where [1, {feature_dim}] features are expected: not supported"
        )
    return network, feature_dim


def _cut(network: nn.Module) -> int:
    """Take the classifier off, in place; the number of features it took."""
    if isinstance(
        network, torchvision.models.SqueezeNet
    ):  # its classifier is a convolution, then the mean over the picture
        channels = next(m.in_channels for m in network.classifier.modules() if isinstance(m, nn.Conv2d))
        network.classifier = nn.AdaptiveAvgPool2d(1)
        return int(channels)
    name, last = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return int(last.in_features)


def find_weights(folder: Path) -> Weights:
    """The one file of a weights folder.

    Raises:
        UserError: no file, more than one, or neither `*.pth` nor `random.json`.
    """
    files = sorted(path for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []
    expected = f"expected exactly one file, *.pth or {RANDOM_WEIGHTS_FILE}"
    if len(files) != 1:
        found = ", ".join(path.name for path in files[:5]) or "nothing"
        raise UserError(f"the weights folder {folder} holds {found}: {expected}")
    path = files[0]
    if path.name == RANDOM_WEIGHTS_FILE:
        try:
            seed = json.loads(path.read_text())["seed"]
        except (ValueError, KeyError, TypeError):
            seed = None
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise UserError(f'{path} is not of the form {{"init": "random", "seed": 0}}')
        return Weights(path, "random", {"kind": "random", "name": path.name, "seed": seed})
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"the weights folder {folder} holds {path.name}: {expected}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(path, "file", {"kind": "file", "name": path.name, "sha256": digest})


def load(backbone: str, image_size: int, weights: Weights) -> tuple[nn.Module, int]:
    """`create`, started from `weights`; says in the log which.

    Raises:
        UserError: as `create`; or the file is no state dict, or another network's.
    """
    if weights.kind == "random":
        seed = weights.identity["seed"]
        print(
            f"WARNING: the {backbone} backbone starts from RANDOM weights (seed {seed}), not pretrained ones",
            flush=True,
        )
        return create(backbone, image_size, seed)
    network, feature_dim = create(backbone, image_size)
    state = _read(weights.path)
    _check(backbone, network, state, weights.path.name)
    network.load_state_dict(state, strict=False)
    print(
        f"the {backbone} backbone starts from {weights.path.name}, SHA-256 {weights.identity['sha256'][:16]}",
        flush=True,
    )
    return network, feature_dim


def _read(path: Path) -> dict[str, Tensor]:
    expected = "expected a state dict of tensors, as torch.save(network.state_dict(), …) writes"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch's readers raise a dozen types on damaged files
        # An UnpicklingError begins with advice to unpickle anyway; what was found comes after that.
        lines = str(error).split("WeightsUnpickler error: ")[-1].splitlines()
        reason = next((line.strip() for line in lines if line.strip() and "weights_only" not in line), "")[:200]
        raise UserError(
            f"the weights {path.name} cannot be loaded ({type(error).__name__}: {reason}); {expected}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the weights {path.name} hold a {type(state).__name__} of other things; {expected}")
    for key in list(state):  # in place: load_state_dict needs the version numbers that hang on this very dict
        new = _OLD_DENSENET.sub(r"\1\2", key)
        if new != key:
            state[new] = state.pop(key)
    return state


def _check(backbone: str, network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Everything but the classifier must be there, in the right shape, and nothing else."""
    expected = network.state_dict()
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]  # old files lack it
    known = expected.keys() | _classifier_keys(backbone)
    unknown = [key for key in state if key not in known and not key.startswith(_AUXILIARY_KEYS)]
    shapes = [
        f"{key} is {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [f"{len(keys)} keys {what}: {', '.join(keys[:3])}" for what, keys in
                (("missing", missing), ("unknown", unknown), ("of another shape", shapes)) if keys]  # fmt: skip
    if problems:
        raise UserError(
            f"the weights {name} are not those of {backbone} ({'; '.join(problems)}); "
            "give the file that belongs to the backbone, or name the backbone that belongs to the file"
        )


def _classifier_keys(backbone: str) -> set[str]:
    """The keys of the layer that `create` cuts off, which a file of weights may have or lack."""
    with torch.device("meta"):  # names only, no memory
        network = torchvision.models.get_model(backbone, weights=None, **_AUXILIARY.get(backbone, {}))
    whole = set(network.state_dict())
    _cut(network)
    return whole - set(network.state_dict())


def fused(network: nn.Module) -> nn.Module:
    """A copy for inference, each BatchNorm merged into the convolution before it: the same function, a fifth faster.

    A network that torch.fx cannot trace is returned as it is.
    """
    try:
        return fuse(network.eval())
    except Exception as error:  # tracing runs arbitrary network code, and fails in as many ways
        print(f"convolutions are left unfused: {type(error).__name__} in tracing", flush=True)
        return network
