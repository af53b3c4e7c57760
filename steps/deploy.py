"""Deploy: Model, EndpointConfig and Endpoint, when the gate was passed and the package is approved."""

from sagemaker.core.workflow.conditions import ConditionEquals
from sagemaker.core.workflow.execution_variables import ExecutionVariables
from sagemaker.core.workflow.functions import Join
from sagemaker.mlops.workflow.condition_step import ConditionStep
from sagemaker.mlops.workflow.endpoint_step import EndpointConfigStep, EndpointStep
from sagemaker.mlops.workflow.model_step import ModelStep
from sagemaker.mlops.workflow.steps import ProcessingStep, TrainingStep

from steps import gate, register
from steps.context import Context, call_retries

VARIANT = "AllTraffic"


def build(context: Context, train: TrainingStep, evaluate: ProcessingStep, registered: ModelStep) -> ConditionStep:
    """A condition beside the gate, which it repeats: SageMaker has no conditions inside conditions, nor steps that
    depend on one. The model waits for its registration."""
    parameters = context.parameters
    model = ModelStep(
        "Model",
        step_args=register.model(context, train).build(),
        depends_on=[registered],
        retry_policies=call_retries(),
    )
    config = EndpointConfigStep(
        "EndpointConfig",
        step_args=context.session.create_endpoint_config(
            # A configuration cannot be changed, so each execution has its own.
            name=Join(on="-", values=[context.settings.name, ExecutionVariables.PIPELINE_EXECUTION_ID]),
            production_variants=[
                {
                    "VariantName": VARIANT,
                    "ModelName": model.properties.ModelName,
                    "InstanceType": parameters.endpoint_instance_type,
                    "InitialInstanceCount": 1,
                    "InitialVariantWeight": 1,
                }
            ],
            kms_key=context.settings.kms_key or None,
        ),
        retry_policies=call_retries(),
    )
    endpoint = EndpointStep(
        "Endpoint",
        step_args=context.session.create_endpoint(
            endpoint_name=parameters.endpoint_name, config_name=config.properties.EndpointConfigName
        ),
    )
    approved = ConditionEquals(left=parameters.approval_status, right="Approved")
    return ConditionStep(
        "Approved",
        conditions=[gate.passed(context, evaluate), approved],
        if_steps=[model, config, endpoint],
        else_steps=[],
    )
