"""Tune: many trials of a head on the features, over learning rate, batch size and what else the settings tune."""

from typing import Any

from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
from sagemaker.core.shapes import HyperbandStrategyConfig, HyperParameterTuningJobStrategyConfig
from sagemaker.mlops.workflow.steps import ProcessingStep, TuningStep
from sagemaker.train.tuner import HyperparameterTuner

from pipelines.contract import CHANNEL_FEATURES, METRIC_REGEX
from pipelines.settings import Categorical, Range, Settings
from steps.context import Context, as_text, channel, job_retries, output_of


def build(context: Context, embed: ProcessingStep) -> TuningStep:
    """The best trial's values are `properties.BestTrainingJob.TunedHyperParameters["lr"]`, `["batch-size"]`, …"""
    settings = context.settings
    trainer = context.trainer(
        "Tune",
        "hpo.py",
        {
            # Hyperband shares out epochs, and has to know at definition how many there are.
            "epochs": settings.epochs if settings.strategy == "Hyperband" else context.parameters.epochs.to_string(),
            **{option(name): value for name, value in settings.fixed.items()},
            "patience": settings.patience,
            "seed": settings.seed,
            "objective": settings.objective,
        },
    )
    tuner = HyperparameterTuner(
        trainer,
        objective_metric_name=settings.objective,
        objective_type="Minimize",
        metric_definitions=[{"Name": name, "Regex": regex} for name, regex in METRIC_REGEX.items()],
        hyperparameter_ranges={option(name): _range(values) for name, values in settings.tuned.items()},
        strategy=settings.strategy,
        strategy_config=_hyperband(settings) if settings.strategy == "Hyperband" else None,
        early_stopping_type="Auto" if settings.early_stopping else "Off",
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


def option(name: str) -> str:
    """A setting's name as the scripts' hyperparameter."""
    return name.replace("_", "-")


def _hyperband(settings: Settings) -> HyperParameterTuningJobStrategyConfig:
    """An epoch is what Hyperband gives trials more or less of: each prints the objective once."""
    resources = HyperbandStrategyConfig(max_resource=settings.epochs, min_resource=1)
    return HyperParameterTuningJobStrategyConfig(hyperband_strategy_config=resources)


def _range(values: Range) -> Any:
    if isinstance(values, Categorical):
        return CategoricalParameter([as_text(value) for value in values.values])
    scaling = {"linear": "Linear", "log": "Logarithmic"}[values.scale]
    return ContinuousParameter(values.min, values.max, scaling)
