"""Split: photos in class folders -> shards of train, valid and test."""

from sagemaker.mlops.workflow.steps import ProcessingStep

from pipelines.contract import SIDES
from steps.context import PROCESSING, Context


def build(context: Context) -> ProcessingStep:
    """Outputs: `train`, `valid`, `test`, and `report` with what was left out and why."""
    settings = context.settings
    outputs = {name: f"{PROCESSING}/{name}" for name in (*SIDES, "report")}
    return context.processing_step(
        "Split",
        "split.py",
        arguments={
            "input": f"{PROCESSING}/input/dataset",
            **outputs,
            "valid-fraction": settings.valid_fraction,
            "test-fraction": settings.test_fraction,
            "salt": settings.split_salt,
            "max-unreadable": settings.max_unreadable,
            "max-pixels": settings.max_pixels,
        },
        inputs={"dataset": context.parameters.input_data},
        outputs=outputs,
    )
