"""Fine-tuning of the whole network, from the head that was found on frozen features (linear probe, then fine-tune).

Order of the photos, their augmentation and dropout are functions of (seed, epoch or step, position): a run that goes on
from a checkpoint ends with the same weights, bit for bit, as one that was never interrupted.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import engines
import heads
import loading
import photos
import shards
import workers
from checkpoints import Checkpoints
from failures import UserError
from networks import Classifier
from progress import Progress
from ranks import World

WEIGHT_DECAY = 0.01  # AdamW's, of matrices and kernels
BACKBONE_LR = 0.1  # of the head's: what is pretrained should move less than what is new
WARM_UP = 0.1  # of all steps: Adam's second moments are guesses at first
CLIP = 1.0  # the longest gradient, as a 2-norm


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of fine-tuning."""

    lr: float
    batch_size: int
    """Photos a step, over all ranks."""
    epochs: int
    seed: int


@dataclass
class _State:
    """Where the training stands; with the network's and the optimiser's tensors it is the whole of a checkpoint."""

    epoch: int
    """The epoch that is being trained, from 1."""
    step: int
    """Batches of it that are done."""
    loss: float
    """Sum over the photos of it that are done."""
    seen: int
    """How many those are."""
    best: heads.Score
    best_epoch: int
    best_network: dict[str, Tensor]


def fine_tune(
    network: Classifier,
    train: Path,
    valid: Path,
    spec: photos.Preprocessing,
    recipe: Recipe,
    observer: heads.Observer,
    checkpoints: Checkpoints | None = None,
    world: World | None = None,
) -> tuple[int, heads.Score]:
    """Train everything on the photos of `train`, in place; print the metrics each epoch.

    BatchNorm keeps its running statistics, which batches this small would only spoil; its scales are trained.

    Args:
        network: with the head as it was found on features; the same on every rank.
        train: shards to learn from.
        valid: shards that decide which epoch is kept.
        spec: preprocessing for validation, as the endpoint does; its image_size is that of training too.
        recipe: hyperparameters.
        observer: told before training and before each change between training and validation.
        checkpoints: where to go on from, and where to save.
        world: this process among those that train together.

    Returns:
        The epoch that was kept, the best by validation loss, and its score; 0 is the network as it came, so that the
        result is never worse than that.

    Raises:
        UserError: a loss or a gradient was not finite.
    """
    world = world or World()
    network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    index, held_out = shards.index(train), shards.index(valid)
    label_of = {name: label for label, name in enumerate(shards.classes(train))}
    labels = torch.tensor([label_of[photo.label] for photo in index])
    criterion = nn.CrossEntropyLoss()
    optimiser = _optimiser(network, recipe.lr)
    peaks = [group["lr"] for group in optimiser.param_groups]
    per_epoch = math.ceil(len(index) / recipe.batch_size)

    saved = world.from_first(checkpoints.load() if checkpoints and world.is_first else None)
    if saved is not None:
        state = _restore(saved, network, optimiser)
        print(f"going on from the checkpoint: epoch {state.epoch}, {state.step} of {per_epoch} steps done", flush=True)
    else:
        before = score(network, held_out, label_of, spec, criterion, world)
        print("before fine-tuning:", flush=True)
        heads.print_metrics(before, None)
        state = _State(1, 0, 0.0, 0, before, 0, _copy(network))
    observer.watch(network, criterion)
    replica = world.wrap(network)
    fast = world.device.type == "cuda" and engines.has_bf16("cuda")  # a T4 or V100 has none
    last_save = time.monotonic()
    while state.epoch <= recipe.epochs:
        observer.training()
        _training_mode(network)
        progress = Progress(f"fine-tuned, epoch {state.epoch}", len(index))
        progress.add(state.step * recipe.batch_size)
        for whole, share, pixels in _epoch(index, spec, recipe, state.epoch, state.step, world):
            step = (state.epoch - 1) * per_epoch + state.step
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * heads.schedule(step, recipe.epochs * per_epoch, WARM_UP)
            torch.manual_seed(_seed(recipe.seed, step, world.rank))  # dropout
            inputs = torch.from_numpy(photos.normalise(pixels, spec)).to(world.device)
            # A rank that the last batch leaves without photos takes part all the same, with one that does not count.
            target = labels[share if len(share) else whole[:1]].to(world.device)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=fast):
                loss = criterion(replica(inputs), target)
            optimiser.zero_grad()
            # The ranks' gradients are averaged: weighted like this their mean is the gradient of the whole batch.
            (loss * (len(share) * world.size / len(whole))).backward()
            length = nn.utils.clip_grad_norm_(network.parameters(), CLIP).item()
            value = loss.item()
            if not (math.isfinite(value) and math.isfinite(length)):
                raise _diverged(f"the loss is {value} and the gradient's norm {length}", state, per_epoch, recipe)
            optimiser.step()
            state.step, state.loss, state.seen = (
                state.step + 1,
                state.loss + value * len(share),
                state.seen + len(share),
            )
            progress.add(len(whole))
            if checkpoints and world.is_first and time.monotonic() - last_save >= checkpoints.interval:
                checkpoints.save(_to_save(state, network, optimiser))
                last_save = time.monotonic()
        observer.evaluating()
        result = score(network, held_out, label_of, spec, criterion, world)
        loss_sum, seen = world.total(state.loss, state.seen)
        print(f"epoch {state.epoch} of {recipe.epochs}, training loss {loss_sum / max(seen, 1):.6f}", flush=True)
        heads.print_metrics(result, None)
        if not math.isfinite(result.loss):
            raise _diverged(f"the validation loss is {result.loss}", state, per_epoch, recipe)
        if result.loss < state.best.loss:
            state.best, state.best_epoch, state.best_network = result, state.epoch, _copy(network)
        state.epoch, state.step, state.loss, state.seen = state.epoch + 1, 0, 0.0, 0
        if checkpoints and world.is_first:
            checkpoints.save(_to_save(state, network, optimiser))
            last_save = time.monotonic()
    network.load_state_dict(state.best_network)
    network.cpu().eval()
    kept = f"kept epoch {state.best_epoch} of fine-tuning"
    print(kept + ("" if state.best_epoch else ", the head as it came"), flush=True)
    heads.print_metrics(state.best, None)
    return state.best_epoch, state.best


def _optimiser(network: Classifier, lr: float) -> torch.optim.AdamW:
    """Backbone at a tenth of the head's learning rate; no weight decay on biases and the scales of norms."""
    groups = []
    for part, rate in ((network.backbone, lr * BACKBONE_LR), (network.head, lr)):
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decay, chosen in (
            (WEIGHT_DECAY, [parameter for parameter in trained if parameter.ndim >= 2]),
            (0.0, [parameter for parameter in trained if parameter.ndim < 2]),
        ):
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def _epoch(
    index: list[shards.Photo], spec: photos.Preprocessing, recipe: Recipe, epoch: int, start: int, world: World
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.uint8]]]:
    """From batch `start` on: positions of the whole batch, those of this rank's share, and the share's pixels."""
    order = torch.from_numpy(np.random.default_rng((recipe.seed, epoch)).permutation(len(index)))
    wholes = list(torch.split(order, recipe.batch_size))[start:]
    shares = [whole[world.rank :: world.size] for whole in wholes]
    # An empty share still needs a picture to go through the network.
    wanted = ([(index[i], i) for i in (s if len(s) else w[:1]).tolist()] for w, s in zip(wholes, shares, strict=True))
    cores = max(1, workers.cores() // world.local_size)
    pixels = workers.ordered_map(
        partial(loading.augmented, size=spec.image_size, seed=(recipe.seed, epoch)), wanted, min(cores, len(wholes))
    )
    return zip(wholes, shares, pixels, strict=True)


def _seed(*facts: int) -> int:
    return int(np.random.SeedSequence(facts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _diverged(what: str, state: _State, per_epoch: int, recipe: Recipe) -> UserError:
    where = f"epoch {state.epoch} of {recipe.epochs}, step {min(state.step + 1, per_epoch)} of {per_epoch}"
    return UserError(
        f"fine-tuning diverged at {where}: {what} (fine-tune-lr={recipe.lr:g}, batch-size={recipe.batch_size}, "
        f"seed={recipe.seed}); take a smaller fine-tune-lr"
    )


def _to_save(state: _State, network: Classifier, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Tensors and plain values only, which is what weights_only=True reads. The schedule and every random number are
    functions of seed, epoch and step, so that there is no generator's state to save."""
    values = {**vars(state), "best": asdict(state.best)}
    return {"state": values, "network": network.state_dict(), "optimiser": optimiser.state_dict()}


def _restore(saved: dict[str, Any], network: Classifier, optimiser: torch.optim.Optimizer) -> _State:
    network.load_state_dict(saved["network"])
    optimiser.load_state_dict(saved["optimiser"])
    values = saved["state"]
    return _State(**{**values, "best": heads.Score(**values["best"])})


def score(
    network: Classifier,
    index: list[shards.Photo],
    label_of: dict[str, int],
    spec: photos.Preprocessing,
    criterion: nn.Module,
    world: World | None = None,
    batch: int = 64,
) -> heads.Score:
    """Loss and accuracy on photos, preprocessed as the endpoint does; each rank takes a share of them."""
    world = world or World()
    count, index = len(index), index[world.rank :: world.size]
    network.eval()
    device = network.head.weight.device
    task = partial(loading.centre, spec=spec, max_pixels=photos.MAX_PIXELS)
    cores = max(1, workers.cores() // world.local_size)
    batches = workers.ordered_map(task, workers.batches(index, batch), min(cores, len(index) // batch))

    def logits_from(start: int) -> Tensor:
        pixels, unreadable = next(batches)
        if unreadable:
            position, reason = unreadable[0]
            raise UserError(f"{index[start + position].name} cannot be read ({reason}): run Split again")
        logits: Tensor = network(torch.from_numpy(photos.normalise(pixels, spec)).to(device))
        return logits

    labels = np.array([label_of[photo.label] for photo in index], np.int64)
    own = heads.evaluate(logits_from, labels, batch, criterion) if index else heads.Score(0.0, 0.0)
    if world.size == 1:
        return own
    loss, right = world.total(own.loss * len(index), own.accuracy * len(index))
    return heads.Score(loss / count, right / count)


def _training_mode(network: Classifier) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _copy(network: Classifier) -> dict[str, Tensor]:
    """The weights of this moment, in main memory."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
