"""Register: a version in the model package group, with its evaluation and its approval status."""

from sagemaker.core.model_metrics import MetricsSource, ModelMetrics
from sagemaker.core.workflow.execution_variables import ExecutionVariables
from sagemaker.core.workflow.functions import Join
from sagemaker.mlops.workflow.model_step import ModelStep
from sagemaker.mlops.workflow.steps import ProcessingStep, TrainingStep
from sagemaker.serve.model_builder import ModelBuilder

from pipelines.contract import EVALUATION_FILE
from steps.context import Context, call_retries, output_of
from steps.evaluate import OUTPUT

CONTENT_TYPES = ["image/jpeg", "image/png", "image/webp", "application/x-image", "application/json"]
RESPONSE_TYPES = ["application/json", "text/csv"]


def model(context: Context, train: TrainingStep) -> ModelBuilder:
    """The archive and the image that serves it. A builder is used once: the SDK's remember their request."""
    return ModelBuilder(
        s3_model_data_url=train.properties.ModelArtifacts.S3ModelArtifacts,
        image_uri=context.serving_image,
        sagemaker_session=context.session,
        role_arn=context.settings.role_arn,
        dependencies={},  # its default makes the SDK look for a bucket to upload code to; the archive has all
    )


def build(context: Context, train: TrainingStep, evaluate: ProcessingStep) -> ModelStep:
    """The package is `properties.ModelPackageArn`; its group has the pipeline's name."""
    settings = context.settings
    report = Join(on="/", values=[output_of(evaluate, OUTPUT), EVALUATION_FILE])
    step_args = model(context, train).register(
        model_package_group_name=settings.name,
        content_types=CONTENT_TYPES,
        response_types=RESPONSE_TYPES,
        inference_instances=[settings.endpoint_instance_type],
        transform_instances=[settings.endpoint_instance_type],
        approval_status=context.parameters.approval_status,
        model_metrics=ModelMetrics(model_statistics=MetricsSource(content_type="application/json", s3_uri=report)),
        customer_metadata_properties={
            "backbone": settings.backbone,
            "execution": ExecutionVariables.PIPELINE_EXECUTION_ARN,
        },
    )
    return ModelStep("Register", step_args=step_args, retry_policies=call_retries())
