"""Photos in class folders -> train, valid and test shards.

    python3 split.py --input DATASET --train DIR --valid DIR --test DIR --report DIR

The dataset is `CLASS/**/photo.jpg`, or ready-made `train/`, `valid/` (or `val/`, `validation/`) and `test/` folders of
class folders, which are kept as they are. Otherwise the side is a function of the photo's bytes alone: adding photos
moves none of the others, and byte-identical photos share a side. No PyTorch here.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fingerprint
import photos
import shards
import workers
from contract import SIDES, SPLIT_REPORT
from failures import PROCESSING, UserError, run
from hyperparameters import Parser
from progress import Progress

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}
SIDE_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
CHUNK = 32  # photos a task: large enough to hide the cost of sending it to a worker
NAMED = 5  # how many offenders an error names


@dataclass(slots=True)
class Source:
    """A file that looks like a photo, and what became of it."""

    path: str
    """Relative to the dataset, as found."""
    name: str
    """`CLASS/relative/path.jpg`: its name in a shard."""
    side: str
    """Set in a ready-made dataset; else empty until its bytes are known."""
    sha256: str = ""
    reason: str = ""
    """Why it cannot be read; empty for a good photo."""

    @property
    def label(self) -> str:
        """The class."""
        return self.name.split("/", 1)[0]


@dataclass
class Dataset:
    """What lies in the input folder."""

    ready_made: bool
    sources: list[Source] = field(default_factory=list)
    folders: list[tuple[str, str]] = field(default_factory=list)
    """(side, class) of every class folder that holds files; the side is empty unless ready-made."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no photos by their extension, counted by it."""


def side_of(sha256: str, valid_fraction: float, test_fraction: float, salt: int = 0) -> str:
    """The side of a photo: the first 8 bytes of its SHA-256 as a number in [0, 1), against the fractions.

    Another salt gives another split of the same photos, for comparing results over several.
    """
    salted = hashlib.sha256(f"{salt} {sha256}".encode()).hexdigest() if salt else sha256
    position = int(salted[:16], 16) / 2**64
    if position < test_fraction:
        return "test"
    return "valid" if position < test_fraction + valid_fraction else "train"


def scan(root: Path) -> Dataset:
    """List the photos below `root`; nothing is read yet.

    Raises:
        UserError: not a folder, no class folders, or a ready-made dataset with a side missing.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"--input {root} {what}: expected a folder of class folders, CLASS/photo.jpg")
    folders = _folders(root)
    if not folders:
        files = [path.name for path in sorted(root.iterdir()) if not path.name.startswith(".")]
        found = f"only files such as {files[0]}" if files else "nothing"
        raise UserError(f"the dataset holds {found}: expected class folders, CLASS/photo.jpg")
    roles: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        if folder.name.lower() in SIDE_FOLDERS:
            roles[SIDE_FOLDERS[folder.name.lower()]].append(folder.name)
    # A class may well be called «train»; two such names, or nothing else, mean ready-made sides.
    dataset = Dataset(ready_made=len(roles) >= 2 or (bool(roles) and len(folders) == 1))
    if not dataset.ready_made:
        _scan_classes(dataset, root, folders, "")
        _count_ignored(dataset, root)
        return dataset
    others = [folder.name for folder in folders if folder.name.lower() not in SIDE_FOLDERS]
    missing = [side for side in SIDES if side not in roles]
    twice = [names for names in roles.values() if len(names) > 1]
    if missing or others or twice:
        problem = (
            f"{missing[0]} is missing" if missing
            else f"{others[0]} stands beside them" if others
            else f"{' and '.join(twice[0])} are the same side"
        )  # fmt: skip
        raise UserError(
            f"the dataset looks ready-made (it holds {', '.join(f.name for f in folders[:NAMED])}), but {problem}: "
            "expected the folders train, valid and test and no others, or class folders only"
        )
    for side in SIDES:
        folder = root / roles[side][0]
        _scan_classes(dataset, root, _folders(folder), side)
        _count_ignored(dataset, folder)
    return dataset


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _count_ignored(dataset: Dataset, folder: Path) -> None:
    """Files beside class folders have no label: they are ignored, photos among them with a warning."""
    stray = [path for path in sorted(folder.iterdir()) if path.is_file()]
    dataset.ignored.update(_kind(path.name) for path in stray)
    photo = next((path.name for path in stray if _is_photo(path.name)), None)
    if photo is not None:
        print(f"warning: photos outside any class folder have no label and are ignored, e.g. {photo}", flush=True)


def _scan_classes(dataset: Dataset, root: Path, folders: list[Path], side: str) -> None:
    for folder in folders:
        before, seen = len(dataset.sources), Counter[str]()
        for path in _walk(folder, ()):
            if not _is_photo(path.name):
                seen[_kind(path.name)] += 1
                continue
            relative = path.relative_to(root).as_posix()
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            dataset.sources.append(Source(relative, name, side))
        dataset.ignored.update(seen)
        if len(dataset.sources) > before or any(kind != "hidden" for kind in seen):
            dataset.folders.append((side, folder.name))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below `folder`, sorted; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _walk(path, (*above, here))
        else:
            yield path


def _is_photo(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _kind(name: str) -> str:
    return "hidden" if name.startswith(".") else Path(name).suffix.lower() or "no extension"


def examine(chunk: list[str], root: str, max_pixels: int) -> list[tuple[str, str]]:
    """(SHA-256, reason it cannot be read or "") of every file. Runs in a worker."""
    return [_examine(os.path.join(root, path), max_pixels) for path in chunk]  # noqa: PTH118 - hot, and only a str


def _examine(path: str, max_pixels: int) -> tuple[str, str]:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "", "the file name is not UTF-8"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return "", error.strerror or str(error)
    try:
        photos.verify(data, max_pixels)
    except photos.UnreadablePhoto as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


def judge(sources: list[Source], max_unreadable: float) -> tuple[list[Source], dict[str, Any]]:
    """The photos to keep, and the report's lists of those that are not.

    Raises:
        UserError: more than `max_unreadable` of them cannot be read.
    """
    unreadable = [source for source in sources if source.reason]
    if len(unreadable) > max_unreadable * len(sources):
        first = "; ".join(f"{_printable(s.path)}: {s.reason}" for s in unreadable[:NAMED])
        raise UserError(
            f"{len(unreadable)} of {len(sources)} photos are unreadable, more than --max-unreadable {max_unreadable:g} "
            f"({first}{'; …' if len(unreadable) > NAMED else ''}); repair or remove them, or raise the limit"
        )
    same: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        if not source.reason:
            same[source.sha256].append(source)
    groups = {sha: group for sha, group in same.items() if len(group) > 1}
    conflicts = {sha for sha, group in groups.items() if len({s.label for s in group}) > 1}

    def listed(which: list[str]) -> list[dict[str, Any]]:
        return [{"sha256": sha, "paths": [source.path for source in groups[sha]]} for sha in which]

    report = {
        "unreadable": [{"path": _printable(s.path), "reason": s.reason} for s in unreadable],
        "conflicts": listed([sha for sha in groups if sha in conflicts]),
        "duplicates": listed([sha for sha in groups if sha not in conflicts]),
        "leaks": listed([sha for sha in groups if sha not in conflicts and len({s.side for s in groups[sha]}) > 1]),
    }
    return [s for s in sources if not s.reason and s.sha256 not in conflicts], report


def count(kept: list[Source], folders: list[tuple[str, str]], ready_made: bool) -> dict[str, dict[str, int]]:
    """Photos per side and class, for the report.

    Raises:
        UserError: fewer than two classes, or a class with no photo on some side.
    """
    classes = sorted({label for _, label in folders})
    counts = Counter((source.side, source.label) for source in kept)
    table = {side: {label: counts[side, label] for label in classes} for side in SIDES}
    if not counts:
        raise UserError(
            f"the dataset holds no photo that can be used in {len(classes)} class folders (JPEG, PNG or WebP)"
        )
    if len(classes) < 2:
        raise UserError(f"the dataset has one class only, {classes[0]}: a classifier needs at least two class folders")
    empty = [(label, side) for label in classes for side in SIDES if not table[side][label]]
    if empty:
        label, side = empty[0]
        total = sum(table[s][label] for s in SIDES)
        others = sorted({name for name, _ in empty} - {label})
        more = (
            f" (so do {len(others)} more: {', '.join(others[:NAMED])}{', …' if others[NAMED:] else ''})"
            if others
            else ""
        )
        way_out = (
            f"add photos of it to the {side} folder, or remove the class from all three"
            if ready_made
            else f"add photos of it, raise --{side}-fraction, remove it, or bring ready-made side folders"
            if side != "train"
            else "add photos of it, lower the other sides' fractions, or remove it"
        )
        raise UserError(
            f"class {label} has {total} usable photos, and none of them on the {side} side{more}; {way_out}"
        )
    return table


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def write(kept: list[Source], root: Path, classes: list[str], folders: dict[str, Path]) -> None:
    """The shards of all three sides, photos in the order of their names."""
    progress = Progress("written", len(kept))
    with ExitStack() as stack:
        writers = {side: stack.enter_context(shards.Writer(folders[side], classes)) for side in SIDES}
        for source in sorted(kept, key=lambda source: source.name):
            writers[source.side].add(source.name, (root / source.path).read_bytes())
            progress.add(1)


def main() -> None:
    """Split the dataset that the options name."""
    parser = Parser(__doc__)
    processing = Path("/opt/ml/processing")
    parser.add_argument("--input", type=Path, default=processing / "input/dataset", help="folder of class folders")
    for side in SIDES:
        parser.add_argument(f"--{side}", type=Path, default=processing / side, help=f"empty folder for {side} shards")
    parser.add_argument("--report", type=Path, default=processing / "report", help=f"folder for {SPLIT_REPORT}")
    parser.add_argument("--valid-fraction", type=float, default=0.1, help="share of photos for validation")
    parser.add_argument("--test-fraction", type=float, default=0.1, help="share of photos for the test")
    parser.add_argument("--salt", type=int, default=0, help="another number gives another split")
    parser.add_argument("--max-unreadable", type=float, default=0.05, help="share of photos that may be unreadable")
    parser.add_argument("--max-pixels", type=int, default=photos.MAX_PIXELS, help="larger photos count as unreadable")
    options = parser.parse()
    for name in ("valid_fraction", "test_fraction"):
        if not 0 < getattr(options, name) < 1 or not options.valid_fraction + options.test_fraction < 1:
            value = getattr(options, name)
            raise UserError(
                f"--{name.replace('_', '-')} {value:g}: expected above 0, and both fractions together below 1"
            )
    if not 0 <= options.max_unreadable <= 1:
        raise UserError(f"--max-unreadable {options.max_unreadable:g}: expected a share from 0 to 1")
    if options.max_pixels < 1:
        raise UserError(f"--max-pixels {options.max_pixels}: expected at least 1")

    dataset = scan(options.input)
    ignored = sum(dataset.ignored.values())
    print(f"found {len(dataset.sources)} photos and {ignored} other files", flush=True)
    progress = Progress("checked", len(dataset.sources))
    # Fewer photos than two tasks are not worth starting processes for.
    count_workers = min(workers.cores(), len(dataset.sources) // CHUNK)
    chunks = workers.batches((source.path for source in dataset.sources), CHUNK)
    task = partial(examine, root=str(options.input), max_pixels=options.max_pixels)
    remaining = iter(dataset.sources)
    for results in workers.ordered_map(task, chunks, count_workers):
        for sha256, reason in results:
            source = next(remaining)
            source.sha256, source.reason = sha256, reason
            if not reason and not dataset.ready_made:
                source.side = side_of(sha256, options.valid_fraction, options.test_fraction, options.salt)
        progress.add(len(results))

    kept, report = judge(dataset.sources, options.max_unreadable)
    counts = count(kept, dataset.folders, dataset.ready_made)
    classes = sorted(counts["train"])
    for each in report["unreadable"][:NAMED]:
        print(f"set aside: {each['path']}: {each['reason']}")
    for what, meaning in (
        ("unreadable", "unreadable photos are set aside"),
        ("conflicts", "photos stand under two labels with the same bytes and are left out"),
        ("leaks", "photos stand on two sides with the same bytes: the figures of valid and test will flatter"),
    ):
        if report[what]:
            print(f"warning: {len(report[what])} {meaning}; all are listed in {SPLIT_REPORT}", flush=True)

    write(kept, options.input, classes, {side: getattr(options, side) for side in SIDES})
    options.report.mkdir(parents=True, exist_ok=True)
    summary = {
        "classes": classes,
        "counts": counts,
        "fingerprint": fingerprint.of_photos((source.side, source.name, source.sha256) for source in kept),
        "ready_made": dataset.ready_made,
        "fractions": None if dataset.ready_made else {"valid": options.valid_fraction, "test": options.test_fraction},
        "salt": None if dataset.ready_made else options.salt,
        "ignored": dict(sorted(dataset.ignored.items())),
        **report,
    }
    (options.report / SPLIT_REPORT).write_text(json.dumps(summary, indent=1))
    sides = ", ".join(f"{side} {sum(counts[side].values())}" for side in SIDES)
    print(f"{len(classes)} classes; {sides}; {len(report['duplicates'])} sets of identical photos", flush=True)


if __name__ == "__main__":
    run(main, PROCESSING)
