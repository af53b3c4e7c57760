"""Embed: every photo through the frozen backbone, once, for all trials that follow."""

from sagemaker.mlops.workflow.steps import ProcessingStep

from pipelines.contract import METRIC_TEST_LOSS, SIDES
from steps.context import PROCESSING, Context, output_of


def build(context: Context, split: ProcessingStep) -> ProcessingStep:
    """Output: `features`. The test side is embedded only where trials are compared on it."""
    settings = context.settings
    sides = SIDES if settings.objective == METRIC_TEST_LOSS else SIDES[:2]
    return context.processing_step(
        "Embed",
        "embed.py",
        arguments={
            **{name: f"{PROCESSING}/input/{name}" for name in (*sides, "weights")},
            "output": f"{PROCESSING}/features",
            "backbone": settings.backbone,
            "image-size": settings.image_size,
            "resize-size": settings.resize_size or settings.image_size,
            "max-pixels": settings.max_pixels,
        },
        inputs={**{side: output_of(split, side) for side in sides}, "weights": context.parameters.weights},
        outputs={"features": f"{PROCESSING}/features"},
    )
