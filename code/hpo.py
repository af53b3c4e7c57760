"""One trial of the tuner: a linear head on the features, with the hyperparameters the tuner proposes.

    python hpo.py --lr 0.01 --batch-size 32 [--epochs 20 --weight-decay 0.3 --seed 0]

A trial sees training and validation features only, unless the objective is the test loss. It takes a few seconds, and
most of that is importing PyTorch.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

import features
import heads
from contract import CHANNEL_FEATURES, METRIC_TEST_LOSS, METRIC_VALID_LOSS
from failures import TRAINING, run
from hyperparameters import HEAD, Hyperparameter, Parser

HYPERPARAMETERS = (
    *HEAD,
    Hyperparameter(
        "objective",
        METRIC_VALID_LOSS,
        "what trials are compared on; the test loss is reported for that only",
        choices=(METRIC_VALID_LOSS, METRIC_TEST_LOSS),
    ),
)


def main() -> None:
    """Run the trial."""
    parser = Parser(__doc__, HYPERPARAMETERS)
    channel = os.environ.get(f"SM_CHANNEL_{CHANNEL_FEATURES.upper()}", f"/opt/ml/input/data/{CHANNEL_FEATURES}")
    parser.add_argument("--features", type=Path, default=Path(channel), help="what Embed wrote")
    parser.add_argument("--model-dir", type=Path, default=Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model")))
    options = parser.parse()
    print(f"hyperparameters: {parser.describe(options)}", flush=True)

    meta = features.describe(options.features)
    train, valid = (features.load(options.features, side, meta) for side in ("train", "valid"))
    test = features.load(options.features, "test", meta) if options.objective == METRIC_TEST_LOSS else None
    recipe = heads.recipe_of(options)
    fit = heads.fit(train, valid, test, len(meta["classes"]), recipe, heads.NoObserver())

    options.model_dir.mkdir(parents=True, exist_ok=True)
    torch.save(heads.save(fit), options.model_dir / "head.pt")
    scores = {side: asdict(score) for side, score in (("valid", fit.valid), ("test", fit.test)) if score is not None}
    trial = {"hyperparameters": asdict(recipe), "epoch": fit.epoch, **scores}
    (options.model_dir / "trial.json").write_text(json.dumps(trial, indent=1))


if __name__ == "__main__":
    run(main, TRAINING)
