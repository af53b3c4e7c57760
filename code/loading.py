"""Batches of photos from shards, as pixels. Runs in worker processes, so it does without PyTorch."""

import numpy as np
from numpy.typing import NDArray

import photos
import shards
from failures import UserError


def centre(
    batch: list[shards.Photo], spec: photos.Preprocessing, max_pixels: int
) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
    """The readable photos as the network will see them, uint8 [N, S, S, 3]; and (position, reason) of the others."""
    pixels, unreadable = [], []
    for position, photo in enumerate(batch):
        try:
            pixels.append(photos.centre_crop(photos.decode(photo.read(), max_pixels), spec))
        except photos.UnreadablePhoto as error:
            unreadable.append((position, str(error)))
    return np.stack(pixels) if pixels else np.empty((0, spec.image_size, spec.image_size, 3), np.uint8), unreadable


def augmented(batch: list[tuple[shards.Photo, int]], size: int, seed: tuple[int, ...]) -> NDArray[np.uint8]:
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
