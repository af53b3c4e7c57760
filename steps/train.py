"""Train: the best trial's hyperparameters, with SageMaker Debugger's hook and the profiler."""

from typing import Any

from sagemaker.core.debugger import (
    CollectionConfig,
    DebuggerHookConfig,
    ProfilerConfig,
    ProfilerRule,
    Rule,
    get_rule_container_image_uri,
    rule_configs,
)
from sagemaker.core.training.configs import CheckpointConfig
from sagemaker.mlops.workflow.steps import ProcessingStep, TrainingStep, TuningStep

from pipelines.contract import CHANNEL_FEATURES, CHANNEL_TRAIN, CHANNEL_VALID, CHANNEL_WEIGHTS
from pipelines.settings import Settings
from steps.context import Context, channel, job_retries, output_of
from steps.tune import option


def build(context: Context, split: ProcessingStep, embed: ProcessingStep, tune: TuningStep) -> TrainingStep:
    """The archive is `properties.ModelArtifacts.S3ModelArtifacts`.

    With `debugger: job` the hook and the sampling of the system run inside the job: AWS closed SageMaker Debugger to
    new customers. `debugger: managed` asks the service for them.
    """
    settings, parameters = context.settings, context.parameters
    best = tune.properties.BestTrainingJob.TunedHyperParameters
    trainer = context.trainer(
        "Train",
        "train.py",
        {
            **{option(name): best[option(name)] for name in settings.tuned},
            **{option(name): value for name, value in settings.fixed.items()},
            "epochs": parameters.epochs.to_string(),
            "patience": settings.patience,
            "seed": settings.seed,
            "trainable": parameters.trainable,
            "fine-tune-epochs": settings.fine_tune_epochs,
            "fine-tune-lr": settings.fine_tune_lr,
            "debugger": settings.debugger,
            "debugger-save-interval": settings.debugger_save_interval,
            "profiler-interval-ms": settings.profiler_interval_ms,
        },
        instance_count=parameters.training_instance_count,
    )
    # One place for all executions: the step cache compares this URI too, so an execution's id in it would defeat the
    # cache. train.py writes into each checkpoint which run it is of, and leaves others' alone.
    trainer = trainer.with_checkpoint_config(
        CheckpointConfig(local_path="/opt/ml/checkpoints", s3_uri=f"{settings.base_uri}/checkpoints")
    )
    step_args = trainer.train(
        [
            channel(CHANNEL_FEATURES, output_of(embed, "features")),
            channel(CHANNEL_TRAIN, output_of(split, "train")),
            channel(CHANNEL_VALID, output_of(split, "valid")),
            channel(CHANNEL_WEIGHTS, parameters.weights),
        ]
    )
    options: dict[str, Any] = {"cache_config": context.cache, "retry_policies": job_retries()}
    if settings.debugger == "managed":
        return ManagedDebuggerStep(settings, step_args, **options)
    return TrainingStep("Train", step_args=step_args, **options)


class ManagedDebuggerStep(TrainingStep):  # type: ignore[misc] # the SDK is untyped
    """TrainingStep with SageMaker Debugger and its profiler, for which SDK v3's ModelTrainer has no arguments."""

    def __init__(self, settings: Settings, step_args: Any, **options: Any) -> None:
        self._settings = settings
        super().__init__("Train", step_args=step_args, **options)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of CreateTrainingJob."""
        request: dict[str, Any] = super().arguments
        request.update(_debugger(self._settings, request["OutputDataConfig"]["S3OutputPath"]))
        return request


def _debugger(settings: Settings, output: Any) -> dict[str, Any]:
    """The four members of CreateTrainingJob that are SageMaker Debugger."""
    rules = [
        Rule.sagemaker(config())
        for config in (
            rule_configs.vanishing_gradient,
            rule_configs.overfit,
            rule_configs.overtraining,
            rule_configs.poor_weight_initialization,
            rule_configs.loss_not_decreasing,
        )
    ]
    report = ProfilerRule.sagemaker(rule_configs.ProfilerReport())
    for rule in (*rules, report):
        rule.image_uri = get_rule_container_image_uri(rule.name, settings.region)
        rule.instance_type = rule.volume_size_in_gb = None
    # Rules bring the collections they need, saved every 500 steps, which is more than training takes here; and several
    # bring the same, while the API takes each name once.
    interval = str(settings.debugger_save_interval)
    collections = {
        each.name: CollectionConfig(each.name, {**(each.parameters or {}), "save_interval": interval})
        for each in (
            *(CollectionConfig(name) for name in ("losses", "gradients", "weights")),
            *(each for rule in rules for each in rule.collection_configs),
        )
    }
    hook = DebuggerHookConfig(
        s3_output_path=output,
        hook_parameters={"save_interval": interval},
        collection_configs=[collections[name] for name in sorted(collections)],
    )
    profiler = ProfilerConfig(s3_output_path=output, system_monitor_interval_millis=settings.profiler_interval_ms)
    return {
        "DebugHookConfig": hook._to_request_dict(),
        "DebugRuleConfigurations": [rule.to_debugger_rule_config_dict() for rule in rules],
        "ProfilerConfig": profiler._to_request_dict(),
        "ProfilerRuleConfigurations": [report.to_profiler_rule_config_dict()],
    }
