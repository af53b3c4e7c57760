"""A dataset of the reference experiment's shape from any real photos: crops, resized and encoded again.

    python -m benchmarks.dataset --photos DIR --output DIR [--count 2000 --classes 133]

Writes ready-made train, valid and test folders in the proportion of the 8,351 dog photos, 6,680/835/836. Classes are
numbers: what is measured is cost, not accuracy.
"""

import argparse
import io
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks import measure

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SIZE = (500, 400)  # the dog photos' median, pixels
KILOBYTES = 90  # their mean
CALIBRATION = 24  # photos that the JPEG quality is chosen by


@dataclass(frozen=True)
class Sizes:
    """Photos a side."""

    train: int
    valid: int
    test: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.train + self.valid + self.test


DOGS = Sizes(6680, 835, 836)


def sizes_of(count: int) -> Sizes:
    """`count` photos in the proportion of `DOGS`."""
    valid, test = (round(count * side / DOGS.total) for side in (DOGS.valid, DOGS.test))
    return Sizes(count - valid - test, valid, test)


def find(folder: Path) -> list[Path]:
    """The photos below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def crop(image: Image.Image, seed: int) -> Image.Image:
    """A random part of the photo, 60 to 95 % of each side that the proportions allow, scaled to `SIZE`."""
    chance = random.Random(seed)
    scale = min(image.width / SIZE[0], image.height / SIZE[1]) * chance.uniform(0.6, 0.95)
    width, height = SIZE[0] * scale, SIZE[1] * scale
    left, top = chance.uniform(0, image.width - width), chance.uniform(0, image.height - height)
    return image.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def encode(image: Image.Image, quality: int) -> bytes:
    """As JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def quality_for(images: list[Image.Image], kilobytes: float) -> int:
    """The lowest JPEG quality that makes the photos that large on average; 100 where none does."""
    low, high = 50, 100
    while low < high:
        middle = (low + high) // 2
        if sum(len(encode(image, middle)) for image in images) >= kilobytes * 1000 * len(images):
            high = middle
        else:
            low = middle + 1
    return low


def make(photos: Path, output: Path, sizes: Sizes, classes: int) -> float:
    """Write the dataset; the mean size of a photo in kilobytes.

    Raises:
        ValueError: no photos to start from, or too few wanted for a photo of every class on every side.
    """
    sources = find(photos)
    if not sources:
        raise ValueError(f"{photos} holds no photos: expected {', '.join(sorted(SUFFIXES))} files, in any folders")
    if min(sizes.valid, sizes.test) < classes:
        raise ValueError(f"{sizes.total} photos are too few for {classes} classes: every side needs one of each")
    step = max(1, len(sources) // CALIBRATION)
    quality = quality_for([crop(_open(path), 0) for path in sources[::step]][:CALIBRATION], KILOBYTES)
    written, number = 0, 0
    for side in ("train", "valid", "test"):
        for position in range(getattr(sizes, side)):
            data = encode(crop(_open(sources[number % len(sources)]), number), quality)
            path = output / side / f"class{position % classes:03d}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            written, number = written + len(data), number + 1
    return written / number / 1000


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def shrink(dataset: Path, output: Path, sizes: Sizes, classes: int) -> None:
    """A smaller dataset of the same photos, linked: the first of each side, in fewer classes."""
    for side in ("train", "valid", "test"):
        for position, path in enumerate(find(dataset / side)[: getattr(sizes, side)]):
            link = output / side / f"class{position % classes:03d}" / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def measured(dataset: Path) -> Sizes:
    """The photos a side of a ready-made dataset.

    Raises:
        ValueError: a side has none.
    """
    counts = {side: len(find(dataset / side)) for side in ("train", "valid", "test")}
    if empty := [side for side, count in counts.items() if not count]:
        raise ValueError(f"{dataset} has no photos in {empty[0]}: expected train, valid and test folders of classes")
    return Sizes(**counts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `obtained` reads."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--photos", type=Path, help="any photos: a dataset is made of crops of them")
    source.add_argument("--data", type=Path, help="a dataset with train, valid and test folders, taken as it is")
    parser.add_argument("--count", type=measure.positive, default=2000, help="photos to make")
    parser.add_argument("--classes", type=measure.positive, default=133, help="classes to make")


@contextmanager
def obtained(options: argparse.Namespace) -> Iterator[Path]:
    """The dataset that the options name, or one made of the photos they name, in a temporary folder."""
    if options.data is not None:
        yield options.data.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-photos-") as folder:
        kilobytes = make(options.photos, Path(folder), sizes_of(options.count), options.classes)
        measure.say(f"made {options.count} photos of {SIZE[0]}x{SIZE[1]}, {kilobytes:.0f} KB on average")
        yield Path(folder)


def main() -> None:
    """Make the dataset that the options name."""
    parser = measure.parser(__doc__)
    add_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    if options.photos is None:
        parser.error("--photos is needed")
    sizes = sizes_of(options.count)
    try:
        kilobytes = make(options.photos, options.output, sizes, options.classes)
    except ValueError as error:
        parser.error(str(error))
    row = (str(sizes.train), str(sizes.valid), str(sizes.test), f"{kilobytes:.1f}")
    result = {"sizes": vars(sizes), "kilobytes": kilobytes, "machine": measure.machine()}
    measure.show(result, [("train", "valid", "test", "KB a photo"), row], options.json)


if __name__ == "__main__":
    main()
