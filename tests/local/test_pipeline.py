"""Whole executions, through boto3."""

import itertools
import json
import subprocess
from typing import Any

import pytest

from tests.local.definitions import (
    BUCKET,
    IMAGE,
    INFERENCE,
    OUT,
    ROLE,
    Clients,
    bundle,
    channel,
    get,
    join,
    json_get,
    pipeline,
    processing,
    training_request,
    tuning_request,
    until,
)

PREPARE = (
    "import pathlib, sys; s, d = map(pathlib.Path, sys.argv[1:]); (d / 'n.txt').write_text((s / 'n.txt').read_text())"
)
HPO = """
import argparse, os
p = argparse.ArgumentParser()
p.add_argument("--lr", type=float)
p.add_argument("--batch-size", type=int)
a = p.parse_args()
print("threads:", os.environ["OMP_NUM_THREADS"])
print(f"loss: {9.0}")
print(f"loss: {a.lr + a.batch_size}")
"""
TRAIN = f"""
import argparse, os, pathlib
p = argparse.ArgumentParser()
p.add_argument("--lr")
p.add_argument("--batch-size")
p.add_argument("--epochs", type=int)
a = p.parse_args()
print("loss: 0.5")
n = pathlib.Path(os.environ["SM_CHANNEL_PREPARED"], "n.txt").read_text()
model = pathlib.Path(os.environ["SM_MODEL_DIR"])
(model / "weight.txt").write_text(n)
(model / "code").mkdir()
(model / "code" / "inference.py").write_text('''{INFERENCE}''')
print("lr", a.lr, "batch-size", a.batch_size, "epochs", a.epochs)
"""
EVALUATE = """
import json, pathlib, sys, tarfile
model, out = map(pathlib.Path, sys.argv[1:])
with tarfile.open(model / "model.tar.gz") as archive:
    weight = archive.extractfile("./weight.txt").read()
(out / "evaluation.json").write_text(json.dumps({"metrics": {"loss": {"value": float(weight) / 10}}}))
"""


def everything(clients: Clients) -> dict[str, Any]:
    """A definition with every type of step."""
    code = clients.put("code/sourcedir.tar.gz", bundle(hpo=HPO, train=TRAIN))
    clients.put("data/n.txt", "3")
    place = [OUT, get("Execution.PipelineExecutionId")]
    prepared = get("Steps.Prepare.ProcessingOutputConfig.Outputs['prepared'].S3Output.S3Uri")
    best = "Steps.Tune.BestTrainingJob.TunedHyperParameters"
    tune = tuning_request(
        code,
        {
            "CategoricalParameterRanges": [
                {"Name": "lr", "Values": ["0.1", "0.001"]},
                {"Name": "batch-size", "Values": ["1", "2"]},
            ]
        },
    )
    tune["TrainingJobDefinition"]["InputDataConfig"] = [channel("prepared", prepared)]
    train = training_request(
        code, epochs=get("Parameters.Epochs"), lr=get(f"{best}['lr']"), **{"batch-size": get(f"{best}['batch-size']")}
    )
    train["InputDataConfig"] = [channel("prepared", prepared)]
    model = get("Steps.Train.ModelArtifacts.S3ModelArtifacts")
    loss = json_get("Evaluate", "Report", "metrics.loss.value")
    passed = {"Type": "LessThanOrEqualTo", "LeftValue": loss, "RightValue": get("Parameters.Threshold")}
    approved = {"Type": "Equals", "LeftValue": get("Parameters.Approval"), "RightValue": "Approved"}
    register = {
        "ModelPackageGroupName": "everything",
        "ModelMetrics": {
            "ModelQuality": {
                "Statistics": {
                    "ContentType": "application/json",
                    "S3Uri": join(*place, "evaluation/evaluation.json", on="/"),
                }
            }
        },
        "InferenceSpecification": {
            "Containers": [{"Image": IMAGE, "ModelDataUrl": model}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "ModelApprovalStatus": get("Parameters.Approval"),
    }
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": get("Steps.Model.ModelName"),
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    config = {"EndpointConfigName": join("everything", get("Execution.PipelineExecutionId"), on="-")}
    return pipeline(
        [
            processing(
                "Prepare", PREPARE, {"data": get("Parameters.Data")}, {"prepared": join(*place, "prep", on="/")}
            ),
            {"Name": "Tune", "Type": "Tuning", "Arguments": tune},
            {"Name": "Train", "Type": "Training", "Arguments": train},
            processing(
                "Evaluate",
                clients.put("code/evaluate.py", EVALUATE),
                {"model": model},
                {"evaluation": join(*place, "evaluation", on="/")},
                PropertyFiles=[
                    {"PropertyFileName": "Report", "OutputName": "evaluation", "FilePath": "evaluation.json"}
                ],
            ),
            {
                "Name": "Gate",
                "Type": "Condition",
                "Arguments": {
                    "Conditions": [passed],
                    "IfSteps": [{"Name": "Register", "Type": "RegisterModel", "Arguments": register}],
                    "ElseSteps": [
                        {
                            "Name": "GateFailed",
                            "Type": "Fail",
                            "Arguments": {
                                "ErrorMessage": join("loss ", loss, " is above ", get("Parameters.Threshold"))
                            },
                        }
                    ],
                },
            },
            {
                "Name": "Approved",
                "Type": "Condition",
                "DependsOn": ["Gate"],
                "Arguments": {
                    "Conditions": [passed, approved],
                    "IfSteps": [
                        {
                            "Name": "Model",
                            "Type": "Model",
                            "DependsOn": ["Register"],
                            "Arguments": {
                                "ExecutionRoleArn": ROLE,
                                "PrimaryContainer": {"Image": IMAGE, "ModelDataUrl": model},
                            },
                        },
                        {
                            "Name": "EndpointConfig",
                            "Type": "EndpointConfig",
                            "Arguments": {**config, "ProductionVariants": [variant]},
                        },
                        {
                            "Name": "Endpoint",
                            "Type": "Endpoint",
                            "Arguments": {
                                "EndpointName": "everything",
                                "EndpointConfigName": get("Steps.EndpointConfig.EndpointConfigName"),
                                "Tags": [],
                            },
                        },
                    ],
                    "ElseSteps": [],
                },
            },
        ],
        [
            {"Name": "Data", "Type": "String", "DefaultValue": f"s3://{BUCKET}/data"},
            {"Name": "Epochs", "Type": "Integer", "DefaultValue": 2},
            {"Name": "Threshold", "Type": "Float", "DefaultValue": 1.0},
            {"Name": "Approval", "Type": "String", "DefaultValue": "Approved"},
        ],
    )


def test_every_step_type(clients: Clients) -> None:
    execution, steps = clients.run(everything(clients), "everything")
    assert execution["PipelineExecutionStatus"] == "Succeeded", steps
    assert {name: step["StepStatus"] for name, step in steps.items()} == dict.fromkeys(steps, "Succeeded")
    assert set(steps) == {
        *("Prepare", "Tune", "Train", "Evaluate", "Gate", "Register", "Approved", "Model", "EndpointConfig", "Endpoint")
    }
    kinds = {"Tune": "TuningJob", "Register": "RegisterModel", "Train": "TrainingJob", "Prepare": "ProcessingJob"}
    for step, kind in {**kinds, "Model": "Model", "Endpoint": "Endpoint", "EndpointConfig": "EndpointConfig"}.items():
        assert steps[step]["Metadata"][kind]["Arn"].startswith("arn:aws:sagemaker:us-east-1:000000000000:")
    assert steps["Gate"]["Metadata"]["Condition"]["Outcome"] == "True"
    assert steps["Prepare"]["StartTime"] <= steps["Prepare"]["EndTime"] <= steps["Tune"]["StartTime"]

    name = steps["Tune"]["Metadata"]["TuningJob"]["Arn"].split("/")[-1]
    tuning = clients.sm.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
    assert tuning["BestTrainingJob"]["TunedHyperParameters"] == {"lr": "0.001", "batch-size": "1"}
    metric = tuning["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]
    assert metric == {"Type": "Minimize", "MetricName": "loss", "Value": pytest.approx(1.001)}
    assert tuning["TrainingJobStatusCounters"]["Completed"] == tuning["ObjectiveStatusCounters"]["Succeeded"] == 4

    job = steps["Train"]["Metadata"]["TrainingJob"]["Arn"].split("/")[-1]
    assert "lr 0.001 batch-size 1 epochs 2" in clients.log("/aws/sagemaker/TrainingJobs", job)
    described = clients.sm.describe_training_job(TrainingJobName=job)
    assert described["HyperParameters"]["epochs"] == "2"
    assert described["FinalMetricDataList"][0]["Value"] == 0.5
    assert [one["Status"] for one in described["SecondaryStatusTransitions"]] == [
        *("Starting", "Downloading", "Training", "Uploading", "Completed")
    ]

    arn = steps["Register"]["Metadata"]["RegisterModel"]["Arn"]
    package = clients.sm.describe_model_package(ModelPackageName=arn)
    assert (package["ModelPackageVersion"], package["ModelApprovalStatus"]) == (1, "Approved")
    statistics = json.loads(clients.get(package["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]))
    assert statistics["metrics"]["loss"]["value"] == 0.3

    assert clients.sm.describe_endpoint(EndpointName="everything")["EndpointStatus"] == "InService"
    answer = clients.runtime.invoke_endpoint(
        EndpointName="everything", ContentType="application/json", Body=b'{"x": 2}'
    )
    assert json.loads(answer["Body"].read())["y"] == 6.0

    # Again: the endpoint of that name is updated, the package gets the next version.
    clients.put("data-of-another-day/n.txt", "4")
    another = f"s3://{BUCKET}/data-of-another-day"
    execution, steps = clients.run(everything(clients), "everything", Data=another)
    assert execution["PipelineExecutionStatus"] == "Succeeded", steps
    assert steps["Register"]["Metadata"]["RegisterModel"]["Arn"].endswith("everything/2")
    answer = clients.runtime.invoke_endpoint(
        EndpointName="everything", ContentType="application/json", Body=b'{"x": 2}'
    )
    assert json.loads(answer["Body"].read())["y"] == 8.0


def test_the_else_branch_ends_in_the_fail_step(clients: Clients) -> None:
    execution, steps = clients.run(everything(clients), "gated", Threshold="0.01")
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert execution["FailureReason"] == "loss 0.3 is above 0.01"
    assert steps["GateFailed"]["Metadata"]["Fail"]["ErrorMessage"] == "loss 0.3 is above 0.01"
    assert steps["Gate"]["Metadata"]["Condition"]["Outcome"] == "False"
    assert not {"Register", "Approved", "Model", "Endpoint"} & set(steps)


def test_a_branch_not_taken_is_no_failure(clients: Clients) -> None:
    _, steps = clients.run(everything(clients), "pending", Approval="PendingManualApproval")
    assert steps["Approved"]["Metadata"]["Condition"]["Outcome"] == "False"
    assert not {"Model", "EndpointConfig", "Endpoint"} & set(steps)
    assert steps["Register"]["StepStatus"] == "Succeeded"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Epochs": "abc"}, r"\[Epochs\].*'abc'.*Integer"),
        ({"Epochs": "1.5"}, r"\[Epochs\].*'1.5'.*Integer"),
        ({"Threshold": "low"}, r"\[Threshold\].*'low'.*Float"),
        ({"Colour": "blue"}, r"\['Blue'\]|'Colour'.*not declared.*Size"),
        ({"Size": "huge"}, r"\[Size\].*'huge'.*small, large"),
        ({}, r"\[Needed\] has no default"),
        ({"On": "maybe"}, r"\[On\].*'maybe'.*Boolean"),
    ],
)
def test_parameters_are_checked_at_start(clients: Clients, given: dict[str, str], message: str) -> None:
    parameters = [
        {"Name": "Epochs", "Type": "Integer", "DefaultValue": 1},
        {"Name": "Threshold", "Type": "Float", "DefaultValue": 1},
        {"Name": "Size", "Type": "String", "DefaultValue": "small", "EnumValues": ["small", "large"]},
        {"Name": "On", "Type": "Boolean", "DefaultValue": True},
        {"Name": "Needed", "Type": "String"},
    ]
    if given:
        given = {"Needed": "x", **given}
    definition = pipeline([processing("P", "pass")], parameters)
    with pytest.raises(clients.sm.exceptions.ClientError, match=message) as caught:
        clients.start(definition, "parameters", **given)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_parameters_reach_the_job_and_are_listed(clients: Clients) -> None:
    kinds = {"S": ("String", "text"), "I": ("Integer", 3), "F": ("Float", 0.5), "B": ("Boolean", True)}
    parameters = [{"Name": name, "Type": kind, "DefaultValue": value} for name, (kind, value) in kinds.items()]
    said = join(*(get(f"Parameters.{name}") for name in kinds), on=" ")
    variables = ("PipelineName", "PipelineExecutionId", "PipelineArn", "PipelineExecutionArn", "StartDateTime")
    environment = {name: get(f"Execution.{name}") for name in variables} | {"NUMBER": get("Parameters.I")}
    code = "import os, sys; print(sys.argv[1]); print(dict(os.environ))"
    step = processing("Say", code, arguments=[said], request={"Environment": environment})
    arn = clients.start(pipeline([step], parameters), "say", I="7", B="false")
    clients.wait(arn)
    job = clients.steps(arn)["Say"]["Metadata"]["ProcessingJob"]["Arn"].split("/")[-1]
    log = clients.log("/aws/sagemaker/ProcessingJobs", job)
    assert log.startswith("text 7 0.5 false\n")
    assert "'PipelineName': 'say'" in log
    assert f"'PipelineExecutionArn': '{arn}'" in log
    assert "'NUMBER': '7'" in log
    listed = clients.sm.list_pipeline_parameters_for_execution(PipelineExecutionArn=arn)["PipelineParameters"]
    assert {item["Name"]: item["Value"] for item in listed} == {"S": "text", "I": "7", "F": "0.5", "B": "false"}
    assert job.startswith(f"pipelines-{arn.rsplit('/', 1)[-1]}-Say-")


def test_a_failing_job_fails_its_step_and_stops_what_follows(clients: Clients) -> None:
    out = f"{OUT}/failing"
    code = """
import os, pathlib, sys
pathlib.Path(os.environ["SM_OUTPUT_DIR"], "message").write_text("error: no photos")
sys.exit(3)
"""
    first = processing("First", clients.put("code/fail.py", code), outputs={"x": out})
    after = processing("After", "pass", {"x": get("Steps.First.ProcessingOutputConfig.Outputs['x'].S3Output.S3Uri")})
    execution, steps = clients.run(pipeline([first, after]), "failing")
    assert execution["PipelineExecutionStatus"] == "Failed"
    assert execution["FailureReason"] == "Step failure: One or multiple steps failed."
    assert steps["First"]["FailureReason"] == "AlgorithmError: error: no photos, exit code: 3"
    assert set(steps) == {"First"}
    job = steps["First"]["Metadata"]["ProcessingJob"]["Arn"].split("/")[-1]
    described = clients.sm.describe_processing_job(ProcessingJobName=job)
    assert (described["ProcessingJobStatus"], described["ExitMessage"]) == ("Failed", "error: no photos")


def test_a_missing_json_path_fails_the_condition_by_name(clients: Clients) -> None:
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'r.json').write_text('{}')"
    files = [{"PropertyFileName": "R", "OutputName": "o", "FilePath": "r.json"}]
    step = processing("Write", code, outputs={"o": f"{OUT}/missing"}, PropertyFiles=files)
    condition = {"Type": "Equals", "LeftValue": json_get("Write", "R", "metrics.loss"), "RightValue": 1}
    gate = {
        "Name": "Gate",
        "Type": "Condition",
        "Arguments": {"Conditions": [condition], "IfSteps": [], "ElseSteps": []},
    }
    _, steps = clients.run(pipeline([step, gate]), "missing-path")
    assert "r.json has nothing at 'metrics.loss'" in steps["Gate"]["FailureReason"]


def test_independent_steps_overlap_and_slots_bound_them(clients: Clients) -> None:
    # Each notes when it began and ended; the service of these tests has two slots.
    code = """
import pathlib, sys, time
begin = time.time()
time.sleep(0.6)
pathlib.Path(sys.argv[1], "t").write_text(f"{begin} {time.time()}")
"""
    code = clients.put("code/overlap.py", code)
    steps = [processing(f"S{n}", code, outputs={"o": f"{OUT}/overlap/{n}"}) for n in range(4)]
    execution, _ = clients.run(pipeline(steps), "overlap")
    assert execution["PipelineExecutionStatus"] == "Succeeded"
    spans = [tuple(map(float, clients.get(f"{OUT}/overlap/{n}/t").split())) for n in range(4)]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_stop_ends_running_jobs_and_starts_no_more(clients: Clients) -> None:
    # It says that it got SIGTERM, and its child must go too.
    code = """
import signal, subprocess, sys, time
subprocess.Popen(["sleep", "300.125"])
signal.signal(signal.SIGTERM, lambda *_: (print("got SIGTERM", flush=True), sys.exit(0)))
print("running", flush=True)
time.sleep(300)
"""
    first = processing("Long", clients.put("code/long.py", code))
    second = processing("After", "pass", DependsOn=["Long"])
    arn = clients.start(pipeline([first, second]), "stopped")

    def log() -> str:
        step = clients.steps(arn).get("Long", {})
        job = step.get("Metadata", {}).get("ProcessingJob", {}).get("Arn", "/").split("/")[-1]
        try:
            return clients.log("/aws/sagemaker/ProcessingJobs", job) if job else ""
        except clients.logs.exceptions.ResourceNotFoundException:
            return ""

    until(log, lambda text: "running" in text)
    clients.sm.stop_pipeline_execution(PipelineExecutionArn=arn)
    assert clients.wait(arn)["PipelineExecutionStatus"] == "Stopped"
    assert {name: step["StepStatus"] for name, step in clients.steps(arn).items()} == {"Long": "Stopped"}
    assert "got SIGTERM" in log()
    assert "sleep 300.125" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    with pytest.raises(clients.sm.exceptions.ClientError, match="Only a running execution"):
        clients.sm.stop_pipeline_execution(PipelineExecutionArn=arn)


def test_depending_on_a_condition_waits_for_its_branch(clients: Clients) -> None:
    branch = processing("Branch", "import time; time.sleep(0.3)")
    gate = {
        "Name": "Gate",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [{"Type": "Equals", "LeftValue": get("Execution.PipelineName"), "RightValue": "branching"}],
            "IfSteps": [branch],
            "ElseSteps": [processing("Other", "pass")],
        },
    }
    steps = [gate, processing("After", "pass", DependsOn=["Gate"]), processing("NotRun", "pass", DependsOn=["Other"])]
    execution, ran = clients.run(pipeline(steps), "branching")
    assert execution["PipelineExecutionStatus"] == "Succeeded"
    assert set(ran) == {"Gate", "Branch", "After"}
    assert ran["Branch"]["EndTime"] <= ran["After"]["StartTime"]


def test_pipelines_and_executions_are_listed_and_deleted(clients: Clients) -> None:
    definition = pipeline([processing("P", "pass")])
    arns = [clients.start(definition, "listed") for _ in range(3)]
    for arn in arns:
        clients.wait(arn)
    first = clients.sm.list_pipeline_executions(PipelineName="listed", MaxResults=2)
    second = clients.sm.list_pipeline_executions(PipelineName="listed", MaxResults=2, NextToken=first["NextToken"])
    listed = first["PipelineExecutionSummaries"] + second["PipelineExecutionSummaries"]
    assert [item["PipelineExecutionArn"] for item in listed] == arns[::-1]
    assert "NextToken" not in second
    names = [
        item["PipelineName"] for item in clients.sm.list_pipelines(PipelineNamePrefix="liste")["PipelineSummaries"]
    ]
    assert names == ["listed"]
    kept = clients.sm.describe_pipeline_definition_for_execution(PipelineExecutionArn=arns[0])
    assert json.loads(kept["PipelineDefinition"]) == definition
    clients.sm.delete_pipeline(PipelineName="listed")
    with pytest.raises(clients.sm.exceptions.ResourceNotFound, match="listed"):
        clients.sm.describe_pipeline(PipelineName="listed")


def test_parallelism_configuration_bounds_the_steps(clients: Clients) -> None:
    steps = [processing(f"S{n}", "pass") for n in range(3)]
    clients.wait(clients.start(pipeline(steps), "one-by-one"))
    arn = clients.sm.start_pipeline_execution(
        PipelineName="one-by-one", ParallelismConfiguration={"MaxParallelExecutionSteps": 1}
    )["PipelineExecutionArn"]
    assert clients.wait(arn)["PipelineExecutionStatus"] == "Succeeded"
    spans = sorted((step["StartTime"], step["EndTime"]) for step in clients.steps(arn).values())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
