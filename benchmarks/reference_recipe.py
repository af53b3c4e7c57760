"""The reference experiment as a user would have written it, and what it costs.

    python -m benchmarks.reference_recipe --photos DIR [--limit 200 --eval-limit 50]

Four trials of two epochs and a final training of five with a test evaluation, each a process of its own that decodes
and forwards every photo again. CPU seconds, split into what a process costs anyway and what each photo-pass costs.
"""

import argparse
import itertools
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import dataset, measure

LEARNING_RATES, BATCH_SIZES = (0.001, 0.1), (10, 32)  # the reference experiment's search space


@dataclass(frozen=True)
class Plan:
    """How much is trained."""

    trials: int
    epochs: int
    final_epochs: int

    def grid(self) -> list[tuple[float, int]]:
        """(lr, batch size) of each trial: all combinations in turn."""
        return list(itertools.islice(itertools.cycle(itertools.product(LEARNING_RATES, BATCH_SIZES)), self.trials))


@dataclass(frozen=True)
class Costs:
    """CPU seconds of the reference recipe's parts."""

    process: float
    """A process: imports, the network, listing the photos."""
    loader_start: float
    """A pass over any number of photos: the loader's workers."""
    train: float
    """A photo trained on, once."""
    eval: float
    """A photo evaluated, once."""

    def total(self, plan: Plan, sizes: dataset.Sizes) -> float:
        """What the whole experiment costs."""
        epochs = plan.trials * plan.epochs + plan.final_epochs
        loaders = 2 * epochs + 1
        evaluated = epochs * sizes.valid + sizes.test
        fixed = (plan.trials + 1) * self.process + loaders * self.loader_start
        return fixed + epochs * sizes.train * self.train + evaluated * self.eval


def costs_of(total: float, report: dict[str, Any]) -> Costs:
    """The costs of one job.

    Args:
        total: CPU seconds of its process and children.
        report: what `reference_job --json` printed.
    """
    seconds, passes, epochs = report["cpu_s"], report["photo_passes"], len(report["epochs"])
    start = seconds["loader_start"]
    evaluations = epochs + ("test" in report)
    return Costs(
        process=total - sum(seconds.values()),
        loader_start=start,
        train=max(0.0, seconds["train"] - epochs * start) / passes["train"],
        eval=max(0.0, seconds["eval"] - evaluations * start) / passes["eval"],
    )


def median(costs: list[Costs]) -> Costs:
    """Part by part."""
    return Costs(**{name: statistics.median(getattr(each, name) for each in costs) for name in asdict(costs[0])})


def run_job(
    data: Path, lr: float, batch_size: int, epochs: int, test: bool, options: argparse.Namespace
) -> tuple[float, dict[str, Any]]:
    """One job in a process of its own: its CPU seconds, and its report."""
    arguments = ["-m", "benchmarks.reference_job", "--json", "--data", str(data), "--lr", str(lr)]
    arguments += ["--batch-size", str(batch_size), "--epochs", str(epochs), "--limit", str(options.limit)]
    arguments += ["--eval-limit", str(options.eval_limit), "--image-size", str(options.image_size)]
    arguments += ["--backbone", options.backbone, "--threads", str(options.threads), *(["--test"] if test else [])]
    if options.weights is not None:
        arguments += ["--weights", str(options.weights.resolve())]
    total, output = measure.run(arguments, options.threads)
    report: dict[str, Any] = json.loads(output)
    return total, report


def add_options(parser: argparse.ArgumentParser, limit: int, eval_limit: int) -> None:
    """The options that `run_job` reads."""
    parser.add_argument("--limit", type=measure.whole, default=limit, help="training photos a pass; 0: all")
    parser.add_argument("--eval-limit", type=measure.whole, default=eval_limit, help="other photos a pass; 0: all")
    parser.add_argument("--image-size", type=measure.positive, default=224, help="side of the crop, pixels")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--weights", type=Path, help="*.pth of the whole network; else random ones, which cost as much")


def main() -> None:
    """Run the experiment that the options name."""
    parser = measure.parser(__doc__)
    dataset.add_options(parser)
    add_options(parser, limit=0, eval_limit=0)
    parser.add_argument("--trials", type=measure.positive, default=4, help="trials of the tuner")
    parser.add_argument("--epochs", type=measure.positive, default=2, help="epochs a trial")
    parser.add_argument("--final-epochs", type=measure.positive, default=5, help="epochs of the final training")
    options = parser.parse_args()
    plan = Plan(options.trials, options.epochs, options.final_epochs)
    try:
        with dataset.obtained(options) as data:
            sizes = dataset.measured(data)
            each = list[tuple[float, dict[str, Any]]]()
            for lr, batch_size in plan.grid():
                each.append(run_job(data, lr, batch_size, plan.epochs, False, options))
                measure.say(f"trial lr={lr} batch-size={batch_size}: {each[-1][0]:.1f} CPU s")
            best = min(range(plan.trials), key=lambda i: float(each[i][1]["epochs"][-1]["valid_loss"]))
            each.append(run_job(data, *plan.grid()[best], plan.final_epochs, True, options))
            spent = sum(total for total, _ in each)
    except ValueError as error:
        parser.error(str(error))
    costs = median([costs_of(total, report) for total, report in each])
    result = {
        "cpu_s": spent,
        "fixed_s_per_process": costs.process,
        "loader_start_s_per_pass": costs.loader_start,
        "train_s_per_photo_pass": costs.train,
        "eval_s_per_photo_pass": costs.eval,
        "cpu_s_all_photos": costs.total(plan, sizes),
        "cpu_s_at_8351": costs.total(plan, dataset.DOGS),
        "plan": asdict(plan),
        "photos": asdict(sizes),
        "sample": {"train": options.limit or sizes.train, "eval": options.eval_limit or None},
        "test": each[-1][1]["test"],
        "trials": [report["epochs"][-1] for _, report in each[:-1]],
        "notes": [
            "cpu_s was measured on the sample; the two totals are the measured costs, multiplied."
            if options.limit or options.eval_limit
            else "cpu_s was measured on all photos; cpu_s_at_8351 is the measured costs, multiplied."
        ],
        "machine": measure.machine(),
    }
    table = [
        ("part", "CPU"),
        ("a process", f"{costs.process:.2f} s"),
        ("a pass, before its photos", f"{costs.loader_start:.3f} s"),
        ("a photo trained on", f"{costs.train * 1000:.1f} ms"),
        ("a photo evaluated", f"{costs.eval * 1000:.1f} ms"),
        ("this run", f"{spent:.1f} s"),
        (f"all {sizes.total} photos", f"{costs.total(plan, sizes):.0f} s"),
        (f"{dataset.DOGS.total} photos", f"{costs.total(plan, dataset.DOGS):.0f} s"),
    ]
    measure.show(result, table, options.json)


if __name__ == "__main__":
    main()
