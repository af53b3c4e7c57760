"""The reference recipe and this project on the same photos, in one go: how many times less CPU time.

    python -m benchmarks.compare --photos DIR [--count 2000 --reference-photos 128]

Four trials of two epochs, a final training of five, a test evaluation: as the reference experiment does it, and as the
scripts of code/ do it, each job a process of its own. The two take turns, so that whatever slows the machine slows
both. Ours runs whole, on all photos and on an eighth of them; the line through both gives its fixed cost and its cost
a photo. The reference is too long for that: its costs a process and a photo-pass are measured on a sample, in several
slices, and multiplied.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import dataset, measure, reference_recipe
from benchmarks.ours import Job, Ours, knows
from benchmarks.reference_recipe import Plan

PLAN = Plan(trials=4, epochs=2, final_epochs=5)
GROWN = Plan(trials=20, epochs=20, final_epochs=20)
SMALL = 8  # the smaller dataset is this many times smaller
VIEWS = (0, 4)
PRECISIONS = ("fp32", "bf16")

Step = tuple[str, Callable[[], None]]
"""What it is called, and what to do."""


def steps(scripts: Ours, combinations: list[tuple[int, str]], grown: bool) -> list[Step]:
    """All jobs, in an order in which each finds what it needs; those of `GROWN` only if wanted."""
    found: list[Step] = [("split", scripts.split)]
    for views, precision in combinations:
        found.append((f"embed K={views} {precision}", partial(scripts.embed, views, precision)))
    for views in sorted({views for views, _ in combinations}):
        for plan in (PLAN, GROWN) if grown else (PLAN,):
            # 20 trials go through the same four settings as 4 do: their mean is what one costs.
            for lr, batch_size in PLAN.grid() if grown else PLAN.grid()[:1]:
                trial = partial(scripts.trial, views, plan.epochs, lr, batch_size)
                found.append((f"trial K={views} of {plan.epochs} epochs", trial))
            train = partial(scripts.train, views, plan.final_epochs)
            found.append((f"train K={views}, {plan.final_epochs} epochs", train))
    return [*found, ("evaluate", partial(scripts.evaluate, Job("train.py", 0, epochs=PLAN.final_epochs)))]


@dataclass(frozen=True)
class Line:
    """CPU seconds of a job as a function of the photos in the dataset."""

    fixed: float
    photo: float

    def at(self, photos: int) -> float:
        """Of a dataset of that many photos."""
        return self.fixed + self.photo * photos


def line(small: float, large: float, photos: tuple[int, int]) -> Line:
    """Through two measurements; a cost that seems to fall with the photos is noise, and counts as fixed."""
    slope = max(0.0, (large - small) / (photos[1] - photos[0]))
    return Line(max(0.0, large - slope * photos[1]), slope)


def jobs_of(plan: Plan, views: int, precision: str) -> list[tuple[int, Job]]:
    """How often each job runs in an experiment."""
    return [
        (1, Job("split.py")),
        (1, Job("embed.py", views, precision)),
        (plan.trials, Job("hpo.py", views, epochs=plan.epochs)),
        (1, Job("train.py", views, epochs=plan.final_epochs)),
        (1, Job("evaluate.py")),
    ]


def total(costs: dict[Job, float], plan: Plan, views: int, precision: str) -> float:
    """CPU seconds of an experiment, from those of its jobs."""
    return sum(times * costs[job] for times, job in jobs_of(plan, views, precision))


def combinations(accepted: dict[str, set[str]]) -> tuple[list[tuple[int, str]], dict[tuple[int, str], str]]:
    """The (K, precision) that can run here; and why the others cannot."""
    import torch

    flags = torch.cpu.get_capabilities()
    has_bf16 = any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    reasons: dict[tuple[int, str], str] = {}
    for views, precision in itertools.product(VIEWS, PRECISIONS):
        if views and not ("--augmented-views" in accepted["embed.py"] and "--views" in accepted["hpo.py"]):
            reasons[views, precision] = "this code has no augmented views"
        elif precision == "bf16" and "--precision" not in accepted["embed.py"]:
            reasons[views, precision] = "this code has no bf16"
        elif precision == "bf16" and not has_bf16:
            reasons[views, precision] = "this CPU has no bf16"
    return [each for each in itertools.product(VIEWS, PRECISIONS) if each not in reasons], reasons


def prepare(options: argparse.Namespace, data: Path, folder: Path) -> tuple[Ours, Ours]:
    """Ours on the small dataset, which is made, and on the large one."""
    sizes = dataset.measured(data)
    fewer = dataset.Sizes(*(max(2, count // SMALL) for count in (sizes.train, sizes.valid, sizes.test)))
    classes = len(list((data / "train").iterdir()))
    dataset.shrink(data, folder / "photos", fewer, max(2, min(classes // SMALL, fewer.valid, fewer.test)))
    weights = folder / "weights"
    weights.mkdir()
    if options.weights is None:
        (weights / "random.json").write_text(json.dumps({"init": "random", "seed": 0}))
    else:
        (weights / options.weights.name).symlink_to(options.weights.resolve())
    code = options.code.resolve()
    accepted = {script: knows(code, script) for script in ("embed.py", "hpo.py")}

    def ours(name: str, photos: Path) -> Ours:
        facts = (options.engine, options.image_size, options.backbone, options.threads, weights, accepted)
        return Ours(code, photos, folder / name, *facts)

    return ours("small", folder / "photos"), ours("large", data)


def take_turns(ours: list[Step], theirs: list[Step]) -> Iterator[Step]:
    """Both lists in order, the second spread evenly over the first."""
    for number, step in enumerate(ours):
        yield from theirs[number * len(theirs) // len(ours) : (number + 1) * len(theirs) // len(ours)]
        yield step


def figures(
    reference: reference_recipe.Costs,
    means: dict[Job, float],
    lines: dict[Job, Line],
    sizes: dataset.Sizes,
    possible: list[tuple[int, str]],
) -> dict[str, Any]:
    """Ratios and growth; None for what was not measured.

    Args:
        reference: costs of the reference recipe.
        means: CPU seconds of each job of ours at these sizes.
        lines: the same at any size.
        sizes: of the dataset.
        possible: the (K, precision) measured.
    """
    dogs = {job: each.at(dataset.DOGS.total) for job, each in lines.items()}
    result: dict[str, Any] = {}
    for views, precision in itertools.product(VIEWS, PRECISIONS):
        here, name = (views, precision) in possible, f"ratio_k{views}_{precision}"
        raw = reference.total(PLAN, sizes) / total(means, PLAN, views, precision) if here else None
        at_dogs = reference.total(PLAN, dataset.DOGS) / total(dogs, PLAN, views, precision) if here and dogs else None
        result |= {name: at_dogs, f"raw_{name}": raw}
    growth = dict.fromkeys((f"k{views}" for views in VIEWS), None) | {
        f"k{views}": total(dogs, GROWN, views, precision) / total(dogs, PLAN, views, precision) - 1
        for views, precision in possible
        if precision == "fp32" and dogs
    }
    theirs = reference.total(GROWN, dataset.DOGS) / reference.total(PLAN, dataset.DOGS) - 1
    return result | {"growth_20x20": growth, "reference_growth_20x20": theirs}


def compare(options: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    """Run both, and put the figures together."""
    small, large = prepare(options, data, folder)
    sizes, fewer = dataset.measured(data), dataset.measured(small.data)
    possible, reasons = combinations(large.accepted)
    slices = list[reference_recipe.Costs]()
    options.limit, options.eval_limit = options.reference_photos, max(1, options.reference_photos // 4)

    def reference(lr: float, batch_size: int) -> None:
        slices.append(reference_recipe.costs_of(*reference_recipe.run_job(data, lr, batch_size, 1, False, options)))

    grid = Plan(options.slices, 1, 1).grid()
    theirs: list[Step] = [("a slice of the reference recipe", partial(reference, *each)) for each in grid]
    if options.quick:
        possible = [each for each in possible if each[0] == 0]
        mine = steps(large, possible, grown=False)
    else:
        mine = [*steps(small, possible, grown=True), *steps(large, possible, grown=True)]
    for number, (name, step) in enumerate(take_turns(mine, theirs), 1):
        before = measure.children_cpu_seconds()
        step()
        spent = measure.children_cpu_seconds() - before
        measure.say(f"{number} of {len(mine) + len(theirs)}: {name}, {spent:.1f} CPU s")

    costs = reference_recipe.median(slices)
    means = {job: statistics.mean(values) for job, values in large.seconds.items()}
    lines = {
        job: line(statistics.mean(values), means[job], (fewer.total, sizes.total))
        for job, values in small.seconds.items()
    }
    evaluated = large.counters[Job("evaluate.py")]["forwards"]
    embedded = {views: large.counters[Job("embed.py", views, "fp32")] for views, p in possible if p == "fp32"}
    if options.quick:
        reasons |= {each: "--quick leaves it out" for each in itertools.product(VIEWS, PRECISIONS) if each[0]}
    notes = [
        f"The reference's costs are medians of {len(slices)} slices of {options.limit} + {options.eval_limit} photos, "
        "multiplied; ours ran whole.",
        f"At {dataset.DOGS.total} photos both are extrapolated from their fixed and per-photo costs.",
        f"The {fewer.total} photos that give our fixed costs have fewer classes; their heads cost slightly less.",
        *(
            f"{job}: no rise with the photos was seen above the noise, so 0 a photo is assumed; what rests on it at "
            f"{dataset.DOGS.total} photos, growth above all, is too low."
            for job, each in lines.items()
            if not each.photo
        ),
        *(f"K={views} {precision} was not measured: {why}." for (views, precision), why in reasons.items()),
    ]
    return {
        **figures(costs, means, lines, sizes, possible),
        "forwards": {f"k{v}": c["forwards"] + evaluated if "forwards" in c else None for v, c in embedded.items()},
        "forwards_expected": {f"k{v}": sizes.total + v * sizes.train for v in embedded},
        "unavailable": {f"k{views}_{precision}": reason for (views, precision), reason in reasons.items()},
        "reference": {
            **asdict(costs),
            "cpu_s": costs.total(PLAN, sizes),
            "cpu_s_at_8351": costs.total(PLAN, dataset.DOGS),
            "slices": len(slices),
            "photos_a_slice": {"train": options.limit, "eval": options.eval_limit},
        },
        "ours": {
            str(job): {
                "cpu_s": mean,
                "fixed_s": lines[job].fixed if lines else None,
                "s_per_photo": lines[job].photo if lines else None,
                "cpu_s_at_8351": lines[job].at(dataset.DOGS.total) if lines else None,
                "counters": large.counters.get(job, {}),
            }
            for job, mean in means.items()
        },
        "photos": asdict(sizes),
        "notes": notes,
        "machine": measure.machine(),
    }


def table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result for people."""
    photos = sum(result["photos"].values())

    def number(value: float | None, form: str, scale: float = 1) -> str:
        return "-" if value is None else format(value * scale if scale != 1 else value, form)

    rows: list[tuple[str, ...]] = [("", "fixed s", "ms/photo", f"CPU s, {photos}", "CPU s, 8351")]
    reference = result["reference"]
    passes = f"{reference['train'] * 1000:.1f}/{reference['eval'] * 1000:.1f}"
    totals = (f"{reference['cpu_s']:.0f}", f"{reference['cpu_s_at_8351']:.0f}")
    rows.append(("reference: a process; a pass, train/eval", f"{reference['process']:.2f}", passes, *totals))
    for name, job in result["ours"].items():
        rows.append(
            (
                name,
                number(job["fixed_s"], ".2f"),
                number(job["s_per_photo"], ".2f", 1000),
                number(job["cpu_s"], ".1f"),
                number(job["cpu_s_at_8351"], ".1f"),
            )
        )
    for views, precision in itertools.product(VIEWS, PRECISIONS):
        name = f"k{views}_{precision}"
        ratios = (number(result[f"raw_ratio_{name}"], ".1f"), number(result[f"ratio_{name}"], ".1f"))
        rows.append((f"times less than the reference, K={views} {precision}", "", "", *ratios))
    for name, value in result["growth_20x20"].items():
        text = number(value, "+.0f", 100) + " %"
        rows.append((f"20 trials x 20 + 20 epochs, {name.upper()}", "", "", "", text))
    rows.append(("the same, reference", "", "", "", f"{result['reference_growth_20x20'] * 100:+.0f} %"))
    for name, forwards in result["forwards"].items():
        text = f"{number(forwards, 'd')} of {result['forwards_expected'][name]}"
        rows.append((f"forwards, {name.upper()}, of those expected", "", "", text, ""))
    return rows


def main() -> None:
    """Compare what the options name."""
    parser = measure.parser(__doc__)
    dataset.add_options(parser)
    parser.add_argument("--code", type=Path, default=measure.CODE, help="folder with the scripts to measure")
    parser.add_argument("--reference-photos", type=measure.positive, default=128, help="training photos a slice")
    parser.add_argument("--slices", type=measure.positive, default=4, help="of the reference recipe")
    parser.add_argument(
        "--quick", action="store_true", help="K=0, one trial and this dataset only; nothing at 8,351 photos"
    )
    parser.add_argument("--engine", default="auto", help="embed.py's engine")
    parser.add_argument("--image-size", type=measure.positive, default=224, help="side of the network's input, pixels")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--weights", type=Path, help="*.pth of the whole network; else random ones, which cost as much")
    options = parser.parse_args()
    try:
        with dataset.obtained(options) as data, tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            result = compare(options, data, Path(folder))
    except ValueError as error:
        parser.error(str(error))
    measure.show(result, table(result), options.json)


if __name__ == "__main__":
    main()
