"""Tune: many trials of (lr, batch-size) on the features."""

from typing import Any

from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
from sagemaker.mlops.workflow.steps import ProcessingStep, TuningStep
from sagemaker.train.tuner import HyperparameterTuner

from pipelines.contract import CHANNEL_FEATURES, METRIC_REGEX
from pipelines.settings import Categorical, Range
from steps.context import Context, as_text, channel, job_retries, output_of


def build(context: Context, embed: ProcessingStep) -> TuningStep:
    """The best trial's values are `properties.BestTrainingJob.TunedHyperParameters["lr"]` and `["batch-size"]`."""
    settings = context.settings
    trainer = context.trainer(
        "Tune",
        "hpo.py",
        {
            "epochs": context.parameters.epochs.to_string(),
            "weight-decay": settings.weight_decay,
            "seed": settings.seed,
            "objective": settings.objective,
        },
    )
    tuner = HyperparameterTuner(
        trainer,
        objective_metric_name=settings.objective,
        objective_type="Minimize",
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in METRIC_REGEX.items()],
        hyperparameter_ranges={"lr": _range(settings.lr), "batch-size": _range(settings.batch_size)},
        strategy=settings.strategy,
        # A grid is as large as it is; the SDK wants a number all the same for the others.
        max_jobs=None if settings.strategy == "Grid" else settings.trials,
        max_parallel_jobs=min(settings.parallel_trials, settings.planned_trials),
        random_seed=settings.seed + 1,  # the SDK drops a 0
    )
    return TuningStep(
        "Tune",
        step_args=tuner.tune([channel(CHANNEL_FEATURES, output_of(embed, "features"))]),
        cache_config=context.cache,
        retry_policies=job_retries(),
    )


def _range(values: Range) -> Any:
    if isinstance(values, Categorical):
        return CategoricalParameter([as_text(value) for value in values.values])
    scaling = {"linear": "Linear", "log": "Logarithmic"}[values.scale]
    return ContinuousParameter(values.min, values.max, scaling)
