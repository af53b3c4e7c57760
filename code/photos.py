"""One way from a photo's bytes to the pixels a network sees: for Split, Embed, Train, Evaluate and the endpoint.

    bytes --decode--> RGB image --crop--> uint8 [S, S, 3] --normalise--> float32 [N, 3, S, S]

Standard library, NumPy and Pillow only: this file travels inside model.tar.gz.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000  # 400 MB decoded, at Pillow's four bytes a pixel

# Pillow's own limit only warns up to twice its value. Ours is checked from every photo's header, before it is decoded.
Image.MAX_IMAGE_PIXELS = None

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePhoto(ValueError):
    """The bytes are no photo that can be read; the message is the reason."""


class TooManyPixels(UnreadablePhoto):
    """The header announces more pixels than the limit."""


@dataclass(frozen=True)
class Preprocessing:
    """What turns a photo into the network's input. Stored in features.json and model.json."""

    resize_size: int = 256
    """Length of the shorter side before the crop, pixels."""
    image_size: int = 224
    """Side of the square cut from the centre, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the RGB channels scaled to 0..1: ImageNet's, as torchvision's weights expect."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    """Antialiased, as Pillow always is."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= self.resize_size:
            raise ValueError(
                f"image_size = {self.image_size}: expected 1 to resize_size ({self.resize_size}), for the crop must fit"
            )
        if self.interpolation != "bilinear":
            raise ValueError(f"interpolation = {self.interpolation!r}: only bilinear is implemented")

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`."""
        return cls(**{**spec, "mean": tuple(spec["mean"]), "std": tuple(spec["std"])})

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The photo as an upright RGB image.

    EXIF orientation is honoured; transparency is laid on white; 16-bit grey is scaled, not clipped; CMYK and palettes
    are converted. Of an animation it is the first frame.

    Raises:
        UnreadablePhoto: no JPEG, PNG or WebP by content, damaged, cut short, or (`TooManyPixels`) too large.
    """
    return _decode(data, max_pixels, draft=False)


def verify(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `UnreadablePhoto` where `decode` would.

    A JPEG is decoded at an eighth of its size: all of its bytes are read and entropy-decoded, so that a cut in the
    middle is found, but most of the arithmetic is saved.
    """
    _decode(data, max_pixels, draft=True)


def _decode(data: bytes, max_pixels: int, draft: bool) -> Image.Image:
    if not data:
        raise UnreadablePhoto("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadablePhoto("not a JPEG, PNG or WebP image") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise a dozen types on damaged headers
        raise UnreadablePhoto(f"damaged header: {_reason(error)}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(f"{width}x{height} pixels, more than {max_pixels:,}")
    try:
        if draft:
            image.draft(None, (max(width // 8, 1), max(height // 8, 1)))  # only JPEG can; others ignore it
        image.load()
        return _upright(_rgb(image), image)
    except MemoryError:
        raise
    except Exception as error:  # as above, for damaged bodies
        raise UnreadablePhoto(_reason(error)) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[grey == transparent] = 65535
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        on_top = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", on_top.size, "white"), on_top).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF says nothing about the pixels: the photo counts as upright
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def centre_crop(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Shorter side to `resize_size`, then the square in the centre: uint8 [S, S, 3].

    Resizing the crop's box directly gives the same picture and touches only the pixels that are kept.
    """
    width, height = image.size
    side = min(width, height) * spec.image_size / spec.resize_size
    return crop(image, ((width - side) / 2, (height - side) / 2, side, side), spec.image_size)


def random_crop(image: Image.Image, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A random part of the photo, mirrored half of the time: uint8 [size, size, 3].

    As torchvision's RandomResizedCrop (aspect ratio 3/4 to 4/3) and RandomHorizontalFlip; but the smallest area is
    0.35, for its 0.08 suits training from scratch on ImageNet more than fine-tuning.
    """
    width, height = image.size
    area = width * height * random.uniform(0.35, 1.0)
    ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    box_width = min(width, float(np.sqrt(area * ratio)))
    box_height = min(height, float(np.sqrt(area / ratio)))
    left = random.uniform(0, width - box_width)
    top = random.uniform(0, height - box_height)
    pixels = crop(image, (left, top, box_width, box_height), size)
    return np.ascontiguousarray(pixels[:, ::-1]) if random.random() < 0.5 else pixels


def crop(image: Image.Image, box: tuple[float, float, float, float], size: int) -> NDArray[np.uint8]:
    """The box (left, top, width, height; pixels, fractions allowed) resized to uint8 [size, size, 3]."""
    left, top, width, height = box
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))


def normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """uint8 [N, S, S, 3] to float32 [N, 3, S, S], channel by channel (value / 255 - mean) / std.

    The memory stays channels-last: the result is a transposed view, which is what convolutions on a CPU like best.
    """
    std = np.asarray(spec.std, np.float64)
    scale = (1 / (255 * std)).astype(np.float32)
    shift = (-np.asarray(spec.mean, np.float64) / std).astype(np.float32)
    values = pixels.astype(np.float32)
    values *= scale
    values += shift
    return values.transpose(0, 3, 1, 2)
