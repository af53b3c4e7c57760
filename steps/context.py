"""What every step needs: settings, pipeline parameters, container images, code, retry and cache policies."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sagemaker.core import image_uris
from sagemaker.core.processing import Processor
from sagemaker.core.shapes import ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output
from sagemaker.core.training.configs import Compute, InputData, MetricDefinition, OutputDataConfig, StoppingCondition
from sagemaker.core.workflow.execution_variables import ExecutionVariables
from sagemaker.core.workflow.functions import Join
from sagemaker.core.workflow.parameters import ParameterFloat, ParameterInteger, ParameterString
from sagemaker.core.workflow.pipeline_context import PipelineSession
from sagemaker.mlops.workflow.retry import (
    RetryPolicy,
    SageMakerJobExceptionTypeEnum,
    SageMakerJobStepRetryPolicy,
    StepExceptionTypeEnum,
    StepRetryPolicy,
)
from sagemaker.mlops.workflow.steps import CacheConfig, ProcessingStep
from sagemaker.train.model_trainer import ModelTrainer

from pipelines.contract import METRIC_REGEX
from pipelines.settings import Settings

PROCESSING = "/opt/ml/processing"
RESOURCE_CONFIG = "/opt/ml/config/resourceconfig.json"  # SageMaker's, in processing jobs: which instance this is
# AWS' PyTorch image for SDK v3 (torch 2.12, Python 3.12; patched until July 2027). The family called `pytorch` is out
# of support. Jobs that only process run in it too: one image, one set of versions.
TRAINING_IMAGE = ("pytorch-amzn2023", "2.12")
# The serving image AWS supports since it dropped TorchServe's in June 2026.
SERVING_IMAGE = ("ray-serve", "1")


class Parameters:
    """The parameters that Studio shows and `start -p NAME=VALUE` sets; defaults come from the settings."""

    def __init__(self, settings: Settings) -> None:
        self.input_data = ParameterString("InputData", default_value=settings.data)
        self.weights = ParameterString("Weights", default_value=settings.weights)
        self.processing_instance_type = ParameterString(
            "ProcessingInstanceType", default_value=settings.processing_instance_type
        )
        self.training_instance_type = ParameterString(
            "TrainingInstanceType", default_value=settings.training_instance_type
        )
        self.training_instance_count = ParameterInteger(
            "TrainingInstanceCount", default_value=settings.training_instance_count
        )
        self.endpoint_instance_type = ParameterString(
            "EndpointInstanceType", default_value=settings.endpoint_instance_type
        )
        self.epochs = ParameterInteger("Epochs", default_value=settings.epochs)
        self.trainable = ParameterString("Trainable", default_value=settings.trainable, enum_values=["head", "all"])
        self.test_loss_threshold = ParameterFloat("TestLossThreshold", default_value=settings.test_loss_threshold)
        self.approval_status = ParameterString(
            "ApprovalStatus",
            default_value=settings.approval_status,
            enum_values=["Approved", "PendingManualApproval", "Rejected"],
        )
        self.endpoint_name = ParameterString("EndpointName", default_value=settings.endpoint_name or settings.name)

    def all(self) -> list[Any]:
        """Every parameter, in the order of the definition."""
        return list(vars(self).values())


@dataclass(frozen=True)
class Context:
    """What the build functions share. Build one for each definition: the SDK's objects remember their use."""

    settings: Settings
    session: PipelineSession
    parameters: Parameters
    code: str
    """`s3://…/code/<hash>`: below it `sourcedir.tar.gz` for training jobs and `src/` for processing jobs."""

    @property
    def training_image(self) -> str:
        """For processing and training; the GPU build if the settings' training instance has a GPU.

        The parameter TrainingInstanceType cannot change the image: an image is not a pipeline variable.
        """
        return _image(*TRAINING_IMAGE, self.settings.region, self.settings.training_instance_type, "training")

    @property
    def processing_image(self) -> str:
        """The same, for the settings' processing instance."""
        return _image(*TRAINING_IMAGE, self.settings.region, self.settings.processing_instance_type, "training")

    @property
    def serving_image(self) -> str:
        """For the endpoint."""
        return _image(*SERVING_IMAGE, self.settings.region, self.settings.endpoint_instance_type, "inference")

    @property
    def cache(self) -> CacheConfig:
        """Reuse a step's result while its inputs stay the same. SageMaker compares URIs, which is why code, weights
        and data are content-addressed; where a job writes does not count."""
        days = self.settings.cache_days
        return CacheConfig(enable_caching=True, expire_after=f"P{days}D") if days else CacheConfig(enable_caching=False)

    def output(self, step: str, *names: str) -> Join:
        """`s3://BUCKET/NAME/executions/<execution>/<step>[/<name>]`."""
        place = [f"{self.settings.base_uri}/executions", ExecutionVariables.PIPELINE_EXECUTION_ID, step.lower(), *names]
        return Join(on="/", values=place)

    def processing_step(
        self,
        name: str,
        script: str,
        arguments: dict[str, Any],
        inputs: dict[str, Any],
        outputs: dict[str, str],
        property_files: list[Any] | None = None,
        instance_count: int = 1,
        sharded: Collection[str] = (),
    ) -> ProcessingStep:
        """A step that runs `code/SCRIPT --option value …`.

        Args:
            name: of the step.
            script: file name in `code/`.
            arguments: options by name, without the dashes.
            inputs: URI by input name; each is mounted at `/opt/ml/processing/input/<name>`.
            outputs: local path by output name.
            property_files: files among the outputs that conditions read.
            instance_count: how many instances run it.
            sharded: inputs whose objects are shared out among several instances; each gets all of the others.
        """
        settings = self.settings
        processor = Processor(
            image_uri=self.processing_image,
            entrypoint=["python3", f"{PROCESSING}/input/code/{script}"],
            role=settings.role_arn,
            instance_type=self.parameters.processing_instance_type,
            instance_count=instance_count,
            volume_size_in_gb=settings.volume_gb,
            volume_kms_key=settings.kms_key or None,
            output_kms_key=settings.kms_key or None,
            max_runtime_in_seconds=settings.max_runtime_minutes * 60,
            sagemaker_session=self.session,
        )
        step_args = processor.run(
            inputs=[
                _input(key, uri, instance_count > 1 and key in sharded)
                for key, uri in {**inputs, "code": f"{self.code}/src"}.items()
            ],
            outputs=[
                ProcessingOutput(
                    output_name=key,
                    s3_output=ProcessingS3Output(
                        s3_uri=self.output(name, key), local_path=path, s3_upload_mode="EndOfJob"
                    ),
                )
                for key, path in outputs.items()
            ],
            arguments=[word for option, value in arguments.items() for word in (f"--{option}", as_text(value))],
        )
        return ProcessingStep(
            name,
            step_args=step_args,
            property_files=property_files or [],
            cache_config=self.cache,
            retry_policies=job_retries(),
        )

    def trainer(self, step: str, script: str, hyperparameters: dict[str, Any], instance_count: Any = 1) -> ModelTrainer:
        """A trainer that runs `code/SCRIPT` as the framework containers do: their toolkit unpacks the bundle named by
        `sagemaker_submit_directory` and starts `sagemaker_program`. (`source_code=` would upload to a URI with a
        timestamp, and no cache would ever hit.)"""
        settings = self.settings
        trainer = ModelTrainer(
            training_image=self.training_image,
            role=settings.role_arn,
            sagemaker_session=self.session,
            base_job_name=settings.name,
            compute=Compute(
                instance_type=self.parameters.training_instance_type,
                instance_count=instance_count,
                volume_size_in_gb=settings.volume_gb,
                volume_kms_key_id=settings.kms_key or None,
            ),
            hyperparameters={
                "sagemaker_program": script,
                "sagemaker_submit_directory": f"{self.code}/sourcedir.tar.gz",
                "sagemaker_region": settings.region,
                **{name: as_text(value) for name, value in hyperparameters.items()},
            },
            output_data_config=OutputDataConfig(s3_output_path=self.output(step), kms_key_id=settings.kms_key or None),
            stopping_condition=StoppingCondition(max_runtime_in_seconds=settings.max_runtime_minutes * 60),
        )
        metrics = [MetricDefinition(name=name, regex=regex) for name, regex in METRIC_REGEX.items()]
        return trainer.with_metric_definitions(metrics)


def channel(name: str, uri: Any) -> InputData:
    """An input channel of a training job."""
    return InputData(channel_name=name, data_source=uri)


def output_of(step: ProcessingStep, name: str) -> Any:
    """The URI of a processing step's output, known when it has run."""
    return step.properties.ProcessingOutputConfig.Outputs[name].S3Output.S3Uri


def call_retries() -> list[RetryPolicy]:
    """For steps that are one API call: throttling and service faults, six times, 2 s to a minute apart."""
    faults = [StepExceptionTypeEnum.THROTTLING, StepExceptionTypeEnum.SERVICE_FAULT]
    return [StepRetryPolicy(exception_types=faults, interval_seconds=2, backoff_rate=2.0, max_attempts=6)]


def job_retries() -> list[RetryPolicy]:
    """For steps that run a job: as above; no capacity, for two hours; SageMaker's own errors, twice."""
    kinds = SageMakerJobExceptionTypeEnum
    return [
        *call_retries(),
        SageMakerJobStepRetryPolicy(
            exception_types=[kinds.RESOURCE_LIMIT],
            failure_reason_types=[kinds.CAPACITY_ERROR],
            interval_seconds=60,
            backoff_rate=1.5,
            expire_after_mins=120,
        ),
        SageMakerJobStepRetryPolicy(
            failure_reason_types=[kinds.INTERNAL_ERROR], interval_seconds=30, backoff_rate=2.0, max_attempts=2
        ),
    ]


def _image(family: str, version: str, region: str, instance_type: str, scope: str) -> str:
    return str(image_uris.retrieve(family, region, version=version, instance_type=instance_type, image_scope=scope))


def _input(name: str, uri: Any, sharded: bool) -> ProcessingInput:
    source = ProcessingS3Input(
        s3_uri=uri,
        local_path=f"{PROCESSING}/input/{name}",
        s3_data_type="S3Prefix",
        s3_input_mode="File",
        **({"s3_data_distribution_type": "ShardedByS3Key"} if sharded else {}),
    )
    return ProcessingInput(input_name=name, s3_input=source)


def as_text(value: Any) -> Any:
    """Numbers as text, as the API wants them, 10.0 as 10; pipeline variables as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    return value
