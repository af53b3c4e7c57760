"""The model: a head with the best hyperparameters, then (trainable=all) the whole network; packed for serving.

    python train.py --lr 0.01 --batch-size 32 [--epochs 20 --trainable all --fine-tune-epochs 3 …]

With a trial's hyperparameters the head is that trial's, bit for bit. PyTorch is imported once the options are known to
be good; and the worker processes that decode photos import this file, and do without it.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loading
import photos
import profiler
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
    options = parser.parse()
    print(f"hyperparameters: {parser.describe(options)}", flush=True)
    if not _is_needed(options.trainable):
        return

    import debugger

    observer = debugger.create(
        options.debugger, options.debugger_save_interval, options.output_data_dir, options.input_config_dir
    )
    # The managed service samples the instance itself.
    sampled = options.output_data_dir / "profiler" if options.debugger == "job" else None
    with profiler.sampling(sampled, options.profiler_interval_ms):
        try:
            train(options, observer)
        finally:
            observer.close()


def _is_needed(trainable: str) -> bool:
    """Whether this host has something to do: a head is trained by the first of them.

    Raises:
        UserError: more than one host for trainable=all.
    """
    hosts = sorted(json.loads(os.environ.get("SM_HOSTS", '["algo-1"]')))
    current = os.environ.get("SM_CURRENT_HOST", hosts[0])
    if len(hosts) > 1 and trainable == "all":
        raise UserError(
            f"trainable=all on {len(hosts)} instances: fine-tuning over several instances is not there yet; "
            "set TrainingInstanceCount to 1"
        )
    if current != hosts[0]:
        print(f"a head needs one host, and {hosts[0]} trains it: nothing to do for {current}", flush=True)
    return bool(current == hosts[0])


def train(options: argparse.Namespace, observer: "heads.Observer") -> None:
    """The head, the whole network if wanted, and the archive."""
    import torch

    import archive
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
    learning, held_out = (features.load(options.features, side, meta) for side in (CHANNEL_TRAIN, CHANNEL_VALID))
    fit = heads.fit(learning, held_out, None, len(meta["classes"]), recipe, heads.NoObserver() if whole else observer)

    spec = photos.Preprocessing.from_json(meta["preprocessing"])
    backbone, _ = networks.load(meta["backbone"], spec.image_size, weights)
    network = networks.Classifier(backbone, fit.head)
    network.mean.copy_(fit.mean)
    network.inverse_std.copy_(fit.inverse_std)
    epoch, valid = fit.epoch, fit.valid
    if whole:
        fine = finetune.Recipe(options.fine_tune_lr, options.batch_size, options.fine_tune_epochs, options.seed)
        epoch, valid = finetune.fine_tune(network, options.train, options.valid, spec, fine, observer)
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
        "hyperparameters": {name: getattr(options, name.replace("-", "_")) for name in names},
        "epoch": epoch,
        "validation": asdict(valid),
    }
    with torch.no_grad():
        archive.export(network, description, photos.normalise(pixels, spec), options.model_dir)


if __name__ == "__main__":
    run(main, TRAINING)
