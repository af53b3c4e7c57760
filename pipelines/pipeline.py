"""The pipeline: from photos in S3 to an endpoint that answers.

One definition for two places: SageMaker runs it, and so does `pipelines/local/` on this machine.
"""

import boto3

from pipelines import sdk
from pipelines.settings import Settings

with sdk.importing():
    from sagemaker.core.workflow.pipeline_context import PipelineSession
    from sagemaker.mlops.workflow.pipeline import Pipeline

    from steps import deploy, embed, evaluate, gate, register, split, train, tune
    from steps.context import Context, Parameters


def build(settings: Settings, code: str) -> Pipeline:
    """The SDK's pipeline object.

    A pure function: no credentials, no network, and the same bytes for the same arguments.

    Args:
        settings: with `data` and `weights` as `s3://…` URIs, as `staging.plan` gives them.
        code: URI of the bundle, `s3://…/code/<hash>`.
    """
    context = Context(settings, _session(settings), Parameters(settings), code)
    split_step = split.build(context)
    embed_step = embed.build(context, split_step)
    tune_step = tune.build(context, embed_step)
    train_step = train.build(context, split_step, embed_step, tune_step)
    evaluate_step = evaluate.build(context, split_step, train_step)
    register_step = register.build(context, train_step, evaluate_step)
    gate_step = gate.build(context, evaluate_step, register_step)
    deploy_step = deploy.build(context, train_step, evaluate_step, register_step)
    return Pipeline(
        settings.name,
        parameters=context.parameters.all(),
        steps=[split_step, embed_step, tune_step, train_step, evaluate_step, gate_step, deploy_step],
        sagemaker_session=context.session,
    )


def definition(settings: Settings, code: str) -> str:
    """The definition as JSON text, as CreatePipeline takes it."""
    with sdk.building(settings.region):
        return str(build(settings, code).definition())


def _session(settings: Settings) -> PipelineSession:
    """A session that can call nobody: its credentials are no one's."""
    session = boto3.Session("nobody", "nobody", region_name=settings.region)
    return PipelineSession(boto_session=session, default_bucket=settings.bucket_name, sagemaker_config=sdk.CONFIG)
