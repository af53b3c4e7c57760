"""Gate: the test loss against TestLossThreshold."""

from sagemaker.core.workflow.conditions import ConditionLessThanOrEqualTo
from sagemaker.core.workflow.functions import Join
from sagemaker.mlops.workflow.condition_step import ConditionStep
from sagemaker.mlops.workflow.fail_step import FailStep
from sagemaker.mlops.workflow.model_step import ModelStep
from sagemaker.mlops.workflow.steps import ProcessingStep

from steps.context import Context
from steps.evaluate import test_loss


def passed(context: Context, evaluate: ProcessingStep) -> ConditionLessThanOrEqualTo:
    """The condition itself."""
    return ConditionLessThanOrEqualTo(left=test_loss(evaluate), right=context.parameters.test_loss_threshold)


def build(context: Context, evaluate: ProcessingStep, register: ModelStep) -> ConditionStep:
    """Register a model that is good enough; end the execution as failed, with the figure, when it is not."""
    figures = [test_loss(evaluate), context.parameters.test_loss_threshold.to_string()]
    message = ["The test loss ", figures[0], " is above TestLossThreshold ", figures[1], ": nothing was registered."]
    failed = FailStep("GateFailed", error_message=Join(on="", values=message))
    return ConditionStep("Gate", conditions=[passed(context, evaluate)], if_steps=[register], else_steps=[failed])
