"""Embed: every photo through the frozen backbone, once, for all trials that follow."""

from sagemaker.mlops.workflow.steps import ProcessingStep

from pipelines.contract import METRIC_TEST_LOSS, SIDES
from steps.context import PROCESSING, RESOURCE_CONFIG, Context, output_of


def build(context: Context, split: ProcessingStep) -> ProcessingStep:
    """Output: `features`, a part for each instance. The test side is embedded only where trials are compared on it."""
    settings = context.settings
    sides = SIDES if settings.objective == METRIC_TEST_LOSS else SIDES[:2]
    return context.processing_step(
        "Embed",
        "embed.py",
        arguments={
            **{name: f"{PROCESSING}/input/{name}" for name in (*sides, "report", "weights")},
            "output": f"{PROCESSING}/features",
            "backbone": settings.backbone,
            "image-size": settings.image_size,
            "resize-size": settings.resize_size or settings.image_size,
            "max-pixels": settings.max_pixels,
            "augmented-views": settings.augmented_views,
            "precision": settings.precision,
            "engine": settings.engine,
            "resource-config": RESOURCE_CONFIG,
        },
        inputs={
            **{side: output_of(split, side) for side in sides},
            "report": output_of(split, "report"),
            "weights": context.parameters.weights,
        },
        instance_count=settings.embed_instance_count,
        sharded=sides,
        outputs={"features": f"{PROCESSING}/features"},
    )
