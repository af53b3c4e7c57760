import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import photos

MakePhoto = Callable[..., bytes]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(data: bytes) -> list[tuple[int, ...]]:
    """The distinct colours of a decoded photo."""
    return sorted({tuple(map(int, pixel)) for row in np.asarray(photos.decode(data)) for pixel in row})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read_by_content(make_photo: MakePhoto, kind: str) -> None:
    image = photos.decode(make_photo(kind=kind))
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert colours(encode(clear)) == [(255, 255, 255)]
    assert colours(encode(clear, "WEBP", lossless=True, exact=True)) == [(255, 255, 255)]
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert colours(encode(half)) == [(255, 127, 127)]
    assert colours(encode(Image.new("LA", (4, 4), (0, 0)))) == [(255, 255, 255)]


def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colour() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 2, 4))
    assert colours(encode(image)) == [(10, 20, 30), (200, 100, 50)]
    assert colours(encode(image, transparency=0)) == [(200, 100, 50), (255, 255, 255)]
    assert colours(encode(image, transparency=bytes([255, 0]))) == [(10, 20, 30), (255, 255, 255)]


def test_a_transparent_colour_of_an_rgb_image_is_white() -> None:
    assert colours(encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))) == [(255, 255, 255)]


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (257, 1), (32768, 128), (65535, 255), (300, 1), (40000, 156)])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, grey: int) -> None:
    assert colours(encode(Image.fromarray(np.full((4, 4), value, np.uint16)))) == [(grey, grey, grey)]


def test_cmyk_grey_and_bilevel_become_rgb() -> None:
    cyan = photos.decode(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert np.abs(np.asarray(cyan, np.int64).mean((0, 1)) - (0, 255, 255)).max() < 4
    assert colours(encode(Image.new("L", (4, 4), 7))) == [(7, 7, 7)]
    assert colours(encode(Image.new("1", (4, 4), 1))) == [(255, 255, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(orientation: int, kind: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255  # white top left
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose by number
    stored = Image.fromarray(upright)
    stored = stored if inverse is None else stored.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photos.decode(encode(stored, kind, exif=exif.tobytes()))
    assert image.size == (48, 32)
    assert np.asarray(image)[4:12, 4:20].min() > 200
    assert np.asarray(image)[20:, :].max() < 60


def test_damaged_exif_does_not_make_a_photo_unreadable(make_photo: MakePhoto) -> None:
    assert photos.decode(make_photo(exif=b"Exif\0\0broken")).size == (40, 30)


def test_a_photo_with_a_preview_inside_is_read(make_photo: MakePhoto) -> None:
    first, second = (Image.open(io.BytesIO(make_photo(seed))) for seed in (0, 1))
    data = encode(first, "MPO", save_all=True, append_images=[second])  # as phones write
    assert photos.decode(data).size == (40, 30)
    photos.verify(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am a text file renamed .jpg\n" * 50, "not a JPEG, PNG or WebP image"),
        (b"GIF89a" + b"\0" * 100, "not a JPEG, PNG or WebP image"),
    ],
)
def test_what_is_no_photo_says_so(data: bytes, reason: str) -> None:
    for function in (photos.decode, photos.verify):
        with pytest.raises(photos.UnreadablePhoto, match=reason):
            function(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"kind": "PNG"}, {"kind": "WEBP"}])
def test_a_photo_cut_in_the_middle_is_found(make_photo: MakePhoto, options: dict[str, object]) -> None:
    data = make_photo(size=(300, 200), **options)
    for function in (photos.decode, photos.verify):
        function(data)
        with pytest.raises(photos.UnreadablePhoto):
            function(data[: len(data) // 2])


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    data = huge_png(50_000, 50_000)
    for function in (photos.decode, photos.verify):
        with pytest.raises(photos.TooManyPixels, match=r"50000x50000 pixels, more than 100,000,000"):
            function(data)


def test_the_pixel_limit_is_the_callers(make_photo: MakePhoto) -> None:
    assert photos.decode(make_photo(), 1200).size == (40, 30)
    with pytest.raises(photos.TooManyPixels):
        photos.decode(make_photo(), 1199)


@settings(max_examples=200)
@given(st.data())
def test_damaged_bytes_are_read_or_unreadable_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    original = bytearray(encode(Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(original[: data.draw(st.integers(1, len(original)))])
    for function in (photos.decode, photos.verify):
        try:
            function(damaged, 10_000_000)
        except photos.UnreadablePhoto as error:
            assert str(error)


@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    st.integers(1, 50), st.integers(1, 50), st.integers(0, 255),
)  # fmt: skip
def test_any_mode_and_shape_becomes_a_square(mode: str, width: int, height: int, value: int) -> None:
    bands = {"LA": (value, 90), "RGB": (value, 1, 2), "RGBA": (value, 1, 2, 90)}.get(mode, value)
    image = photos.decode(encode(Image.new(mode, (width, height), bands)))
    spec = photos.Preprocessing(20, 16)
    pixels = photos.centre_crop(image, spec)
    assert (image.mode, image.size, pixels.shape, pixels.dtype) == ("RGB", (width, height), (16, 16, 3), np.uint8)
    assert photos.random_crop(image, 16, np.random.default_rng(value)).shape == (16, 16, 3)


def test_the_crop_is_torchvisions_but_for_a_fraction_of_a_pixel() -> None:
    from torchvision.transforms import v2

    y, x = np.mgrid[:333, :501]
    image = Image.fromarray(
        np.stack([128 + 100 * np.sin(x / 37), 128 + 100 * np.cos(y / 41), x / 2], 2).astype(np.uint8)
    )
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    difference = np.abs(np.asarray(reference, np.int64) - photos.centre_crop(image, photos.Preprocessing()))
    assert difference.max() <= 3
    assert difference.mean() < 0.5


def test_normalising_is_the_formula_and_keeps_channels_last_memory() -> None:
    spec = photos.Preprocessing(8, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    values = photos.normalise(pixels, spec)
    expected = ((pixels / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)
    assert values.dtype == np.float32
    assert np.allclose(values, expected, atol=1e-6)
    assert values.transpose(0, 2, 3, 1).flags.c_contiguous


def test_the_preprocessing_survives_json_and_refuses_a_crop_that_does_not_fit() -> None:
    spec = photos.Preprocessing(40, 32)
    assert photos.Preprocessing.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="image_size = 256: expected 1 to resize_size"):
        photos.Preprocessing(224, 256)
    with pytest.raises(ValueError, match="only bilinear"):
        photos.Preprocessing(interpolation="bicubic")
