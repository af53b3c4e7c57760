"""The model: a head with the best hyperparameters, then (trainable=all) the whole network; packed for serving.

    python train.py --lr 0.01 --batch-size 32 [--epochs 20 --trainable all --fine-tune-epochs 3 …]

Fine-tuning keeps checkpoints where there is a folder for them, and runs on all hosts and GPUs of the job.

With a trial's hyperparameters the head is that trial's, bit for bit. PyTorch is imported once the options are known to
be good; and the worker processes that decode photos import this file, and do without it.
"""

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import fingerprint
import loading
import photos
import profiler
import ranks
import shards
from contract import CHANNEL_FEATURES, CHANNEL_TRAIN, CHANNEL_VALID, CHANNEL_WEIGHTS
from failures import TRAINING, UserError, run
from hyperparameters import HEAD, Hyperparameter, Parser

if TYPE_CHECKING:
    import heads

PARITY_PHOTOS = 8  # on which the network and its ONNX graph are compared

HYPERPARAMETERS = (
    *HEAD,
    Hyperparameter("trainable", "head", "the head on features, or then all of the network", choices=("head", "all")),
    Hyperparameter("fine-tune-epochs", 3, "passes over the photos, for trainable=all", minimum=1),
    Hyperparameter("fine-tune-lr", 1e-4, "the head's learning rate in fine-tuning; the backbone's is a tenth", above=0),
    Hyperparameter("debugger", "job", "where the tensors go: with the job's output, or to the managed service",
                   choices=("job", "managed", "off")),
    Hyperparameter("debugger-save-interval", 10, "steps between two savings of tensors", minimum=1),
    Hyperparameter("profiler-interval-ms", 500, "milliseconds between two samples of the system", minimum=100),
)  # fmt: skip


def main() -> None:
    """Train, and write the archive's files to SM_MODEL_DIR."""
    parser = Parser(__doc__, HYPERPARAMETERS)
    for channel in (CHANNEL_FEATURES, CHANNEL_TRAIN, CHANNEL_VALID, CHANNEL_WEIGHTS):
        default = os.environ.get(f"SM_CHANNEL_{channel.upper()}", f"/opt/ml/input/data/{channel}")
        parser.add_argument(f"--{channel}", type=Path, default=Path(default), help=f"the channel {channel}")
    for name, default in (
        ("model-dir", "/opt/ml/model"),
        ("output-data-dir", "/opt/ml/output/data"),
        ("input-config-dir", "/opt/ml/input/config"),
    ):
        default = os.environ.get(f"SM_{name.upper().replace('-', '_')}", default)
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help="of the job")
    default = os.environ.get("SM_CHECKPOINT_DIR", "/opt/ml/checkpoints")
    parser.add_argument("--checkpoint-dir", type=Path, default=Path(default), help="for checkpoints, if it exists")
    parser.add_argument("--checkpoint-interval", type=float, default=300.0, help="seconds between two of them")
    options = parser.parse()
    signal.signal(signal.SIGTERM, _stop)
    hosts = ranks.layout()
    if ranks.is_rank():
        with ranks.join() as world:
            work(options, world)
        return
    print(f"hyperparameters: {parser.describe(options)}", flush=True)
    if options.trainable == "all" and hosts.is_distributed:
        ranks.launch(hosts, __file__, sys.argv[1:])
    elif hosts.is_first or options.trainable == "all":
        work(options, ranks.World())
    else:
        print(f"a head needs one host, and {hosts.hosts[0]} trains it: nothing to do for {hosts.current}", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM: spot capacity is taken back, or somebody stops the job. What was saved is there; leave at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("stopped by SIGTERM", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def work(options: argparse.Namespace, world: ranks.World) -> None:
    """Train under the eyes of the debugger and, on each host, the profiler."""
    import debugger
    import heads

    observer: heads.Observer = heads.NoObserver()
    if world.is_first:
        observer = debugger.create(
            options.debugger, options.debugger_save_interval, options.output_data_dir, options.input_config_dir
        )
    with ExitStack() as stack:
        # The managed service samples the instance itself.
        if options.debugger == "job" and world.is_first_of_host:
            stack.enter_context(profiler.sampling(options.output_data_dir / "profiler", options.profiler_interval_ms))
        stack.callback(observer.close)
        train(options, observer, world)


def train(options: argparse.Namespace, observer: "heads.Observer", world: ranks.World) -> None:
    """The head, the whole network if wanted, and the archive; rank 0 alone does the first and the last."""
    import torch

    import archive
    import checkpoints
    import features
    import finetune
    import heads
    import networks

    meta = features.describe(options.features)
    weights = networks.find_weights(options.weights)
    if weights.identity != meta["weights"]:
        raise UserError(
            f"the weights are {weights.identity}, but the features were made with {meta['weights']}: run Embed again"
        )
    whole = options.trainable == "all"
    recipe = heads.recipe_of(options)
    fit = None
    if world.is_first:
        learning, held_out = (features.load(options.features, side, meta) for side in (CHANNEL_TRAIN, CHANNEL_VALID))
        first = heads.NoObserver() if whole else observer
        fit = heads.fit(learning, held_out, None, len(meta["classes"]), recipe, first)
    fit = world.from_first(fit)
    assert fit is not None

    spec = photos.Preprocessing.from_json(meta["preprocessing"])
    backbone, _ = networks.load(meta["backbone"], spec.image_size, weights)
    network = networks.Classifier(backbone, fit.head)
    network.mean.copy_(fit.mean)
    network.inverse_std.copy_(fit.inverse_std)
    epoch, valid = fit.epoch, fit.valid
    if whole:
        fine = finetune.Recipe(options.fine_tune_lr, options.batch_size, options.fine_tune_epochs, options.seed)
        identity = checkpoints.identity(
            asdict(recipe), asdict(fine), weights.identity, _contents(options.features), _photos(options)
        )
        saved = checkpoints.Checkpoints(options.checkpoint_dir, identity, options.checkpoint_interval)
        epoch, valid = finetune.fine_tune(network, options.train, options.valid, spec, fine, observer, saved, world)
    if not world.is_first:
        return
    network.fold()

    sample = shards.index(options.valid)[:PARITY_PHOTOS]
    pixels, unreadable = loading.centre(sample, spec, photos.MAX_PIXELS)
    if not len(pixels):
        raise UserError(
            f"none of the first photos of {options.valid} can be read ({unreadable[0][1]}): run Split again"
        )
    names = [each.name for each in HYPERPARAMETERS]
    description: dict[str, Any] = {
        **{name: meta[name] for name in ("backbone", "feature_dim", "classes", "preprocessing", "weights")},
        # Where it comes from: the photos and their sides, how they were embedded, and the code that trained.
        **{name: meta[name] for name in ("data", "views", "engine", "precision")},
        "code": fingerprint.of_folder(Path(__file__).resolve().parent),
        "hyperparameters": {name: getattr(options, name.replace("-", "_")) for name in names},
        "epoch": epoch,
        "validation": asdict(valid),
    }
    with torch.no_grad():
        archive.export(network, description, photos.normalise(pixels, spec), options.model_dir)


def _contents(folder: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file below the folder of features: they are a function of photos and weights."""
    import checkpoints

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), checkpoints.digest(path)) for path in files]


def _photos(options: argparse.Namespace) -> list[list[tuple[str, int]]]:
    """Name and size of the photos that fine-tuning sees."""
    return [[(photo.name, photo.size) for photo in shards.index(side)] for side in (options.train, options.valid)]


if __name__ == "__main__":
    run(main, TRAINING)
