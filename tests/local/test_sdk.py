"""The SageMaker SDK against the service: the very client that talks to AWS."""

from typing import Any

import boto3
import pytest

from tests.local.definitions import BUCKET, IMAGE, OUT, ROLE, Clients, bundle


@pytest.fixture
def session(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A PipelineSession whose clients all go to the service."""
    for name, value in {
        "AWS_ENDPOINT_URL": clients.url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SAGEMAKER_VALIDATE_ROLE": "false",
    }.items():
        monkeypatch.setenv(name, value)
    context = pytest.importorskip("sagemaker.core.workflow.pipeline_context")
    return context.PipelineSession(boto_session=boto3.Session(region_name="us-east-1"), default_bucket=BUCKET)


def test_upsert_start_wait_and_list(session: Any, clients: Clients) -> None:
    from sagemaker.core.parameter import CategoricalParameter
    from sagemaker.core.training.configs import Compute, OutputDataConfig, StoppingCondition
    from sagemaker.core.workflow.conditions import ConditionEquals
    from sagemaker.core.workflow.functions import Join
    from sagemaker.core.workflow.parameters import ParameterInteger
    from sagemaker.mlops.workflow.condition_step import ConditionStep
    from sagemaker.mlops.workflow.fail_step import FailStep
    from sagemaker.mlops.workflow.pipeline import Pipeline
    from sagemaker.mlops.workflow.steps import TrainingStep, TuningStep
    from sagemaker.train.model_trainer import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner

    script = "import sys; print(sys.argv); print('loss:', sys.argv[sys.argv.index('--lr') + 1])"
    code = clients.put("code/sdk.tar.gz", bundle(train=script))
    epochs = ParameterInteger("Epochs", default_value=2)

    def trainer(**hyperparameters: Any) -> Any:
        return ModelTrainer(
            training_image=IMAGE,
            role=ROLE,
            sagemaker_session=session,
            base_job_name="sdk",
            compute=Compute(instance_type="ml.m5.xlarge", instance_count=1),
            hyperparameters={
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": code,
                "epochs": epochs.to_string(),
                **hyperparameters,
            },
            output_data_config=OutputDataConfig(s3_output_path=OUT),
            stopping_condition=StoppingCondition(max_runtime_in_seconds=600),
        )

    tuner = HyperparameterTuner(
        trainer(),
        objective_metric_name="loss",
        hyperparameter_ranges={"lr": CategoricalParameter(["0.5", "0.25"])},
        metric_definitions=[{"Name": "loss", "Regex": "loss: ([0-9.]+)"}],
        max_jobs=2,
        max_parallel_jobs=2,
        objective_type="Minimize",
        strategy="Random",
    )
    tune = TuningStep("Tune", step_args=tuner.tune([]))
    best = tune.properties.BestTrainingJob.TunedHyperParameters["lr"]
    train = TrainingStep("Train", step_args=trainer(lr=best).train([]))
    fail = FailStep("Fail", error_message=Join(on=" ", values=["best was", best]))
    gate = ConditionStep("Gate", conditions=[ConditionEquals(left=best, right="0.5")], if_steps=[], else_steps=[fail])
    pipeline = Pipeline("sdk", parameters=[epochs], steps=[tune, train, gate], sagemaker_session=session)
    arn = pipeline.upsert(role_arn=ROLE)["PipelineArn"]
    assert pipeline.upsert(role_arn=ROLE)["PipelineArn"] == arn
    execution = pipeline.start(parameters={"Epochs": 3})
    assert clients.wait(execution.arn)["FailureReason"] == "best was 0.25"
    states = {step["StepName"]: step["StepStatus"] for step in execution.list_steps()}
    assert states["Tune"] == states["Gate"] == "Succeeded"
    assert states["Fail"] == "Failed"
    job = next(step for step in execution.list_steps() if step["StepName"] == "Train")["Metadata"]["TrainingJob"]["Arn"]
    log = clients.log("/aws/sagemaker/TrainingJobs", job.split("/")[-1])
    assert "'--epochs', '3', '--lr', '0.25'" in log
