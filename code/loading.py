"""Batches of photos from shards, as pixels. Runs in worker processes, so it does without PyTorch."""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import photos
import shards
from failures import UserError

Pixels = NDArray[np.uint8]
Unreadable = list[tuple[int, str]]
"""(position in the batch, reason)"""


def views(
    batch: list[shards.Photo], spec: photos.Preprocessing, max_pixels: int, augmented_views: int
) -> tuple[Pixels, Unreadable]:
    """The readable photos as the network will see them, uint8 [N, 1 + K, S, S, 3]; and those that are not.

    View 0 is the evaluation view, the K others are random crops and flips, seeded by the photo's bytes: the same photo
    has the same views, wherever and whenever it is embedded. Each photo is decoded once.
    """
    found, unreadable = [], []
    for position, photo in enumerate(batch):
        data = photo.read()
        try:
            image = photos.decode(data, max_pixels)
        except photos.UnreadablePhoto as error:
            unreadable.append((position, str(error)))
            continue
        crops = [photos.centre_crop(image, spec)]
        crops += [photos.random_crop(image, spec.image_size, random) for random in _generators(data, augmented_views)]
        found.append(np.stack(crops))
    empty = np.empty((0, 1 + augmented_views, spec.image_size, spec.image_size, 3), np.uint8)
    return np.stack(found) if found else empty, unreadable


def _generators(data: bytes, count: int) -> Iterator[np.random.Generator]:
    digest = hashlib.sha256(data).digest() if count else b""
    for view in range(1, count + 1):
        yield np.random.default_rng((int.from_bytes(digest[:16]), view))


def centre(batch: list[shards.Photo], spec: photos.Preprocessing, max_pixels: int) -> tuple[Pixels, Unreadable]:
    """The evaluation view only, uint8 [N, S, S, 3]; and those that cannot be read."""
    pixels, unreadable = views(batch, spec, max_pixels, 0)
    return pixels[:, 0], unreadable


def augmented(batch: list[tuple[shards.Photo, int]], size: int, seed: tuple[int, ...]) -> Pixels:
    """Random crops, uint8 [N, size, size, 3].

    Each photo comes with a number of its own, so that its crop is the same however the work is spread over processes.

    Raises:
        UserError: a photo cannot be read; Split sets those aside.
    """
    crops = []
    for photo, number in batch:
        try:
            image = photos.decode(photo.read())
        except photos.UnreadablePhoto as error:
            raise UserError(f"{photo.name} cannot be read ({error}): run Split again") from None
        crops.append(photos.random_crop(image, size, np.random.default_rng((*seed, number))))
    return np.stack(crops)
