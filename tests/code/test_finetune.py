"""Fine-tuning: better than the head it starts from, the same after any interruption and on any number of hosts."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
import finetune
import heads
import ranks
from networks import Classifier

CODE = Path(__file__).resolve().parents[2] / "code"
RECIPE = (
    "--lr", "0.0005", "--batch-size", "16", "--epochs", "1", "--trainable", "all", "--fine-tune-epochs", "3",
    "--fine-tune-lr", "0.0005", "--debugger", "off",
)  # fmt: skip


@pytest.fixture(scope="module")
def three_digits(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 scans of three classes; 32x32."""
    folder = tmp_path_factory.mktemp("three-digits")
    for name in "235":
        shutil.copytree(few_digits / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def pipeline(prepare: Callable[..., Any], three_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Split and embedded, with a random resnet18."""
    return prepare(tmp_path_factory.mktemp("fine-tune"), three_digits, 32)


@dataclasses.dataclass
class Training:
    """train.py as a process, which can be killed."""

    pipeline: Any
    root: Path

    def start(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        (self.root / "checkpoints").mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
        places = {
            "SM_MODEL_DIR": self.root / "model", "SM_OUTPUT_DATA_DIR": self.root / "data",
            "SM_OUTPUT_DIR": self.root / "output", "SM_CHECKPOINT_DIR": self.root / "checkpoints",
        }  # fmt: skip
        own = {name: str(place) for name, place in places.items()}
        return subprocess.Popen(
            [sys.executable, str(CODE / "train.py"), *RECIPE, *map(str, arguments)],
            env={**clean, **self.pipeline.channels(), **own, "OMP_NUM_THREADS": "1", "SM_NUM_CPUS": "2", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *arguments: object, **env: str) -> str:
        process = self.start(*arguments, **env)
        log, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return log

    @property
    def reason(self) -> str:
        return (self.root / "output" / "failure").read_text()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = torch.load(self.root / "model" / "model.pt", weights_only=True)
        return loaded


@pytest.fixture
def training(pipeline: Any, tmp_path: Path) -> Training:
    return Training(pipeline, tmp_path)


@pytest.fixture(scope="module")
def whole(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, str]:
    """A run that nothing interrupted, and its log."""
    run = Training(pipeline, tmp_path_factory.mktemp("whole"))
    return run, run.finish()


def losses(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"average validation loss: ([\d.]+)", log)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def until(process: subprocess.Popen[str], found: Callable[[], bool]) -> None:
    while not found():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)


def ended_children(process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Whether all processes that `process` has started by now are gone."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    return lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


# --- the result


def test_it_ends_better_than_the_head_it_started_from(whole: tuple[Training, str]) -> None:
    _, log = whole
    tuned = losses(log.split("before fine-tuning:")[1])
    assert len(tuned) == 5  # before, three epochs, the one that was kept
    assert tuned[-1] == min(tuned) < tuned[0]


def test_the_backbone_was_trained_and_the_statistics_of_batchnorm_were_not(whole: tuple[Training, str]) -> None:
    from networks import create

    before, _ = create("resnet18", 32, 0)
    after = whole[0].weights
    for name, value in before.state_dict().items():
        statistics = "running" in name or "num_batches" in name
        assert torch.equal(after[f"backbone.{name}"], value) == statistics, name


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 100, 1000])
def test_the_schedule_warms_up_and_then_only_falls(steps: int) -> None:
    shares = [heads.schedule(step, steps, finetune.WARM_UP) for step in range(steps)]
    top = shares.index(max(shares))
    assert max(shares) == 1.0
    assert top == int(0.1 * steps)
    assert all(0 < share <= 1 for share in shares)
    assert shares == sorted(shares[:top]) + sorted(shares[top:], reverse=True)


def test_who_learns_how_fast() -> None:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    network = Classifier(backbone, torch.nn.Linear(4, 2))
    of = {parameter: group for group in finetune._optimiser(network, 0.1).param_groups for parameter in group["params"]}
    assert {name: (of[p]["lr"], of[p]["weight_decay"] > 0) for name, p in network.named_parameters()} == {
        "backbone.0.weight": (pytest.approx(0.01), True),
        "backbone.0.bias": (pytest.approx(0.01), False),
        "backbone.1.weight": (pytest.approx(0.01), False),
        "backbone.1.bias": (pytest.approx(0.01), False),
        "head.weight": (0.1, True),
        "head.bias": (0.1, False),
    }


def test_a_loss_that_is_not_finite_ends_it_without_a_model(training: Training) -> None:
    process = training.start("--fine-tune-lr", "1e30")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"error: fine-tuning diverged at epoch 1 of 3, step \d+ of \d+: .*fine-tune-lr=1e\+30", error)
    assert "batch-size=16" in training.reason
    assert "Traceback" not in error
    assert not (training.root / "model").exists()


# --- interrupted


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_within_an_epoch_it_goes_on_to_the_same_weights(
    number: signal.Signals, training: Training, whole: tuple[Training, str]
) -> None:
    file = training.root / "checkpoints" / checkpoints.NAME
    process = training.start("--checkpoint-interval", 0)  # one after each step
    until(process, file.exists)
    first = file.stat().st_ino
    until(process, lambda: file.stat().st_ino != first)
    gone = ended_children(process)
    process.send_signal(number)
    log, error = process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert "Traceback" not in error
    assert "epoch 2 of 3" not in log  # else there is nothing left to go on with
    deadline = time.monotonic() + 5
    while not gone():
        assert time.monotonic() < deadline, "workers outlive the training"
        time.sleep(0.05)

    log = training.finish()
    assert re.search(r"going on from the checkpoint: epoch \d, [1-9]\d* of \d+ steps done", log)
    assert same(training.weights, whole[0].weights)
    assert losses(log)[-1] == losses(whole[1])[-1]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_left_alone(
    training: Training, whole: tuple[Training, str]
) -> None:
    saved = whole[0].root / "checkpoints" / checkpoints.NAME
    target = training.root / "checkpoints" / checkpoints.NAME
    target.parent.mkdir()
    shutil.copyfile(saved, target)
    short = ("--fine-tune-epochs", 1)
    assert f"{target} is of another run" in training.finish("--seed", 4, *short)

    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    log = training.finish()
    assert f"WARNING: {target} is damaged" in log
    assert same(training.weights, whole[0].weights)


def test_a_run_that_was_complete_is_not_trained_again(training: Training, whole: tuple[Training, str]) -> None:
    (training.root / "checkpoints").mkdir()
    shutil.copy(whole[0].root / "checkpoints" / checkpoints.NAME, training.root / "checkpoints")
    log = training.finish()
    assert "training loss" not in log.split("going on from the checkpoint")[1]
    assert same(training.weights, whole[0].weights)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"checkpoint", b"PK\x03\x04", b"checkpoint me 0\n", b"\xff\xfe\n" * 9, b"checkpoint me \xe4\n"],
)
def test_whatever_lies_there_is_no_reason_to_fail(content: bytes, tmp_path: Path) -> None:
    mine = checkpoints.Checkpoints(tmp_path, "me", 0)
    (tmp_path / checkpoints.NAME).write_bytes(content)
    assert mine.load() is None
    mine.save({"epoch": 3, "weights": torch.ones(2)})
    saved = mine.load()
    assert saved is not None
    assert saved["epoch"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.NAME]
    size = (tmp_path / checkpoints.NAME).stat().st_size
    with (tmp_path / checkpoints.NAME).open("r+b") as file:
        file.truncate(size - 1)
    assert mine.load() is None


def test_without_a_folder_nothing_is_saved(tmp_path: Path) -> None:
    nowhere = checkpoints.Checkpoints(tmp_path / "nowhere", "me", 0)
    nowhere.save({"epoch": 3})
    assert nowhere.load() is None
    assert list(tmp_path.iterdir()) == []


# --- on several hosts


def together(training: Training, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two hosts of one job, on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [
        Training(training.pipeline, training.root / host).start(
            *arguments, SM_HOSTS='["algo-1", "algo-2"]', SM_CURRENT_HOST=host, SM_NUM_CPUS="1",
            SM_MASTER_ADDR="127.0.0.1", SM_MASTER_PORT=port,
        )
        for host in ("algo-1", "algo-2")
    ]  # fmt: skip


def test_two_hosts_train_what_one_does(training: Training) -> None:
    # Every batch is shared unevenly, and of the last one, which is a single photo, the second host gets nothing.
    recipe = ("--batch-size", 31, "--fine-tune-lr", 0.0003, "--fine-tune-epochs", 2)
    alone = training.finish(*recipe)
    assert "94 of 94" in alone
    processes = together(training, *recipe)
    logs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    # Not the same bits: the gradients are summed in another order.
    assert losses(logs[0][0]) == pytest.approx(losses(alone), rel=1e-3)
    trained = [[float(loss) for loss in re.findall(r"training loss ([\d.]+)", log)] for log in (alone, logs[0][0])]
    assert len(trained[0]) == 3
    assert trained[1] == pytest.approx(trained[0], rel=1e-4)
    assert losses(logs[1][0]) == []
    assert (training.root / "algo-1" / "model" / "model.pt").exists()
    assert not (training.root / "algo-2" / "model").exists()
    assert not list((training.root / "algo-2" / "checkpoints").iterdir())


def test_a_rank_that_dies_ends_the_job(training: Training) -> None:
    import psutil

    processes = together(training, "--checkpoint-interval", 0)
    file = training.root / "algo-1" / "checkpoints" / checkpoints.NAME
    until(processes[0], file.exists)
    [rank] = [child for child in psutil.Process(processes[1].pid).children() if "train.py" in " ".join(child.cmdline())]
    rank.kill()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "rank 1 was ended by SIGKILL" in (training.root / "algo-2" / "output" / "failure").read_text()
    assert "rank 0 of 2 lost the others" in (training.root / "algo-1" / "output" / "failure").read_text()
    assert "Traceback" not in "".join(errors)


def test_hosts_are_in_the_order_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"algo-{number}" for number in range(1, 12)]
    monkeypatch.setenv("SM_HOSTS", json.dumps(sorted(names)))
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-11")
    monkeypatch.setenv("SM_NUM_GPUS", "4")
    assert ranks.layout() == ranks.Layout(tuple(names), "algo-11", 4)
    assert ranks.layout().is_distributed
    assert not ranks.layout().is_first


@pytest.mark.parametrize("world", [(0, 1), (0, 3), (2, 3)])
def test_the_ranks_share_each_batch(world: tuple[int, int], pipeline: Any) -> None:
    import photos
    import shards

    index = shards.index(pipeline.root / "train")[:17]
    recipe = finetune.Recipe(0.1, 8, 1, 5)
    spec = photos.Preprocessing(32, 32)
    one = ranks.World()
    one.rank, one.size = world
    batches = list(finetune._epoch(index, spec, recipe, 2, 0, one))
    alone = list(finetune._epoch(index, spec, recipe, 2, 0, ranks.World()))
    assert [whole.tolist() for whole, _, _ in batches] == [whole.tolist() for whole, _, _ in alone]
    for (whole, share, pixels), (_, _, all_pixels) in zip(batches, alone, strict=True):
        assert share.tolist() == whole.tolist()[world[0] :: world[1]]
        if len(share):
            assert (pixels == all_pixels[world[0] :: world[1]]).all()
        else:
            assert (pixels == all_pixels[:1]).all()
    later = list(finetune._epoch(index, spec, recipe, 2, 1, one))
    assert [share.tolist() for _, share, _ in later] == [share.tolist() for _, share, _ in batches[1:]]


class Interrupted(Exception):
    """By the test."""


class Impatient(heads.NoObserver):
    """Interrupts the training when its first epoch is validated."""

    def evaluating(self) -> None:
        raise Interrupted


def test_dropout_goes_on_where_it_was(pipeline: Any, tmp_path: Path) -> None:
    import photos

    spec, recipe = photos.Preprocessing(32, 32), finetune.Recipe(0.01, 32, 2, 5)
    sides = (pipeline.root / "train", pipeline.root / "valid", spec, recipe)

    def network() -> Classifier:
        torch.manual_seed(0)
        layers = (torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.AdaptiveAvgPool2d(1))
        return Classifier(torch.nn.Sequential(*layers, torch.nn.Flatten()), torch.nn.Linear(8, 3))

    def saved(name: str) -> checkpoints.Checkpoints:
        (tmp_path / name).mkdir(exist_ok=True)
        return checkpoints.Checkpoints(tmp_path / name, "me", 0)

    finetune.fine_tune(network(), *sides, heads.NoObserver(), saved("whole"))
    with pytest.raises(Interrupted):
        finetune.fine_tune(network(), *sides, Impatient(), saved("resumed"))
    torch.manual_seed(99)
    finetune.fine_tune(network(), *sides, heads.NoObserver(), saved("resumed"))
    # Of the last epoch, whichever was the best.
    whole, resumed = saved("whole").load(), saved("resumed").load()
    assert whole is not None
    assert resumed is not None
    assert same(whole["network"], resumed["network"])
    assert not same(whole["network"], network().state_dict())
