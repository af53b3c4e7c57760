"""Evaluate: the packaged model, through the endpoint's own handlers, on photos it never saw."""

from sagemaker.core.workflow.functions import JsonGet
from sagemaker.core.workflow.properties import PropertyFile
from sagemaker.mlops.workflow.steps import ProcessingStep, TrainingStep

from pipelines.contract import EVALUATION_FILE, TEST_LOSS_PATH
from steps.context import PROCESSING, Context, output_of

OUTPUT = "evaluation"


def build(context: Context, split: ProcessingStep, train: TrainingStep) -> ProcessingStep:
    """Output: `evaluation`, whose evaluation.json is also a property file."""
    output = f"{PROCESSING}/{OUTPUT}"
    return context.processing_step(
        "Evaluate",
        "evaluate.py",
        arguments={"model": f"{PROCESSING}/input/model", "test": f"{PROCESSING}/input/test", "output": output},
        inputs={"model": train.properties.ModelArtifacts.S3ModelArtifacts, "test": output_of(split, "test")},
        outputs={OUTPUT: output},
        property_files=[PropertyFile(name="Evaluation", output_name=OUTPUT, path=EVALUATION_FILE)],
    )


def test_loss(evaluate: ProcessingStep) -> JsonGet:
    """The figure the gate looks at."""
    return JsonGet(step_name=evaluate.name, property_file=evaluate.property_files[0], json_path=TEST_LOSS_PATH)
