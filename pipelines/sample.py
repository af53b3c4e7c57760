"""The sample dataset: scikit-learn's handwritten digits as an ImageFolder of PNGs.

1,797 real 8x8 scans of ten digits (UCI Optical Recognition of Handwritten Digits, shipped inside scikit-learn),
enlarged to 32x32 so that any torchvision backbone accepts them. No network is needed.
"""

from pathlib import Path

SIZE = 32  # pixels; a 224-pixel backbone still yields one feature vector from it, and it keeps the demo to a minute


def write(directory: Path, per_class: int | None = None) -> int:
    """Write `directory/<digit>/<index>.png` and return the number of photos.

    Args:
        directory: created if need be; files already there with the same name are written anew with the same bytes.
        per_class: at most so many photos of each digit; all of them (174 to 183) if not given.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    seen = [0] * 10
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if per_class is not None and seen[label] >= per_class:
            continue
        seen[label] += 1
        folder = directory / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        scan = Image.fromarray((image * (255 / 16)).astype("uint8"))  # the scans hold 0..16
        scan.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.png")
    return sum(seen)
