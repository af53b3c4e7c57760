"""The linear head on frozen features: what a trial of the tuner trains, and what Train trains again, bit for bit.

One loop for both, on one thread: the matrices are small, trials run side by side, and the sums do not depend on how
many cores there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract import METRIC_ACCURACY, METRIC_TEST_LOSS, METRIC_VALID_LOSS
from failures import UserError
from features import FeatureSet

DIVERGED = 100  # times the loss of guessing, ln C: a head as bad as that has learnt nothing
BLOCK = 8192  # rows read from the memory-mapped features at a time


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a head."""

    lr: float
    batch_size: int
    epochs: int
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats, and the share of photos labelled right."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Fit:
    """The head of the best epoch by validation loss, for features standardised with `mean` and `inverse_std`."""

    head: nn.Linear
    mean: Tensor
    inverse_std: Tensor
    epoch: int
    valid: Score
    test: Score | None


class Observer(Protocol):
    """Who wants to see the training: the debugger."""

    def watch(self, network: nn.Module, criterion: nn.Module) -> None:
        """Called once, before the first step."""

    def training(self) -> None:
        """Training steps follow."""

    def evaluating(self) -> None:
        """Forward passes for validation follow."""

    def close(self) -> None:
        """The training is over."""


class NoObserver:
    """Nobody does."""

    def watch(self, network: nn.Module, criterion: nn.Module) -> None:
        """Nothing."""

    def training(self) -> None:
        """Nothing."""

    def evaluating(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def statistics(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and inverse standard deviation of each feature, [D] each, from blocks and in double precision.

    A feature that never changes in training says nothing: its inverse is 0, which leaves it out.
    """
    count = len(features)
    blocks = range(0, count, BLOCK)
    mean = np.sum([features[i : i + BLOCK].sum(0, dtype=np.float64) for i in blocks], axis=0) / count
    variance = np.sum([((features[i : i + BLOCK] - mean) ** 2).sum(0) for i in blocks], axis=0) / count
    std = np.sqrt(variance)
    informative = std > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    inverse = np.divide(1.0, std, out=np.zeros_like(std), where=informative)
    return mean.astype(np.float32), inverse.astype(np.float32)


def cosine(step: int, steps: int) -> float:
    """The share of the learning rate at `step` of `steps`: from 1 down to almost 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def fit(
    train: FeatureSet, valid: FeatureSet, test: FeatureSet | None, classes: int, recipe: Recipe, observer: Observer
) -> Fit:
    """Train a head and print its metrics, a line each per epoch and once more for the epoch that is kept.

    Args:
        train: features to learn from; they also give the standardisation.
        valid: features that decide which epoch is kept.
        test: features to report the test loss on as well, where trials are compared on that.
        classes: how many outputs the head has.
        recipe: hyperparameters.
        observer: told before training and before each change between training and validation.

    Raises:
        UserError: it diverged: the loss was in no epoch what a head can have that learnt anything.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(train, valid, test, classes, recipe, observer)
    finally:
        torch.set_num_threads(threads)


def _fit(
    train: FeatureSet, valid: FeatureSet, test: FeatureSet | None, classes: int, recipe: Recipe, observer: Observer
) -> Fit:
    mean, inverse_std = (torch.from_numpy(values) for values in statistics(train.features))

    def standardised(features: NDArray[np.float32]) -> Tensor:
        return (torch.from_numpy(np.array(features)) - mean) * inverse_std

    head = nn.Linear(train.features.shape[1], classes)
    nn.init.zeros_(head.weight)  # the problem is convex: zero is as good a start as any, and needs no luck
    nn.init.zeros_(head.bias)
    network = nn.Sequential()
    network.add_module("head", head)
    criterion = nn.CrossEntropyLoss()
    observer.watch(network, criterion)
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    order = torch.Generator().manual_seed(recipe.seed)
    labels = torch.from_numpy(train.labels)
    count = len(train.labels)
    steps = recipe.epochs * math.ceil(count / recipe.batch_size)
    rows = max(1, BLOCK // recipe.batch_size) * recipe.batch_size

    def score(side: FeatureSet) -> Score:
        return evaluate(
            lambda start: network(standardised(side.features[start : start + BLOCK])), side.labels, BLOCK, criterion
        )

    best: Fit | None = None
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        observer.training()
        permutation = torch.randperm(count, generator=order)
        total = 0.0
        for start in range(0, count, rows):
            chosen = permutation[start : start + rows]
            # Sorted, so that the file is read forwards; the permutation is put back in memory.
            ascending, back = chosen.sort()
            block = standardised(train.features[ascending.numpy()])[back.argsort()]
            for x, y in zip(
                torch.split(block, recipe.batch_size), torch.split(labels[chosen], recipe.batch_size), strict=True
            ):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.lr * cosine(step, steps)
                step += 1
                loss = criterion(network(x), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item() * len(x)
        observer.evaluating()
        result = score(valid)
        tested = score(test) if test is not None else None
        print(f"epoch {epoch} of {recipe.epochs}, training loss {total / count:.6f}", flush=True)
        print_metrics(result, tested)
        if not math.isfinite(total):
            break  # it diverged, and does not come back
        if result.loss < DIVERGED * math.log(classes) and (best is None or result.loss < best.valid.loss):
            kept = nn.Linear(head.in_features, classes)
            kept.load_state_dict(head.state_dict())
            best = Fit(kept, mean, inverse_std, epoch, result, tested)
    if best is None:
        raise UserError(
            f"training diverged with lr={recipe.lr:g}: no epoch has a validation loss below "
            f"{DIVERGED} ln {classes}, far above guessing; take a smaller lr"
        )
    print(f"kept epoch {best.epoch}, the best of {recipe.epochs} by validation loss", flush=True)
    print_metrics(best.valid, best.test)
    return best


@torch.no_grad()
def evaluate(
    logits_from: Callable[[int], Tensor], labels: NDArray[np.int64], batch: int, criterion: nn.Module
) -> Score:
    """Mean loss and accuracy over all labels.

    Args:
        logits_from: logits [<= batch, C] of the rows from the one given.
        labels: [N].
        batch: rows a call.
        criterion: mean cross-entropy; a module, since the debugger listens to it.
    """
    loss, right = 0.0, 0
    for start in range(0, len(labels), batch):
        logits = logits_from(start)
        y = torch.from_numpy(labels[start : start + batch]).to(logits.device)
        loss += criterion(logits, y).item() * len(y)
        right += int((logits.argmax(1) == y).sum())
    return Score(loss / len(labels), right / len(labels))


def print_metrics(valid: Score, test: Score | None) -> None:
    """The lines that SageMaker's metric definitions look for; the tuner takes the last one a trial printed."""
    print(f"{METRIC_VALID_LOSS}: {valid.loss:.6f}", flush=True)
    if test is not None:
        print(f"{METRIC_TEST_LOSS}: {test.loss:.6f}", flush=True)
    print(f"{METRIC_ACCURACY}: {valid.accuracy:.6f}", flush=True)


def save(fit: Fit) -> dict[str, Tensor]:
    """What head.pt holds."""
    return {**fit.head.state_dict(), "mean": fit.mean, "inverse_std": fit.inverse_std}
