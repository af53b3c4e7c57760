"""The process itself: start, stop, who may talk to it, and what it remembers."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

from pipelines.local import service
from pipelines.local.control import OPERATIONS
from tests.local.conftest import processes
from tests.local.definitions import Clients, bundle, client, pipeline, processing, training_request, until


def post(
    url: str, body: bytes | str, headers: dict[str, str], host: str | None = None, path: str = "/", method: str = "POST"
) -> tuple[int, str]:
    """A request with exactly these headers."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=host is not None)
        if host is not None:
            connection.putheader("Host", host)
        content = body.encode() if isinstance(body, str) else body
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(content)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


LIST = {"X-Amz-Target": "SageMaker.ListPipelines", "Content-Type": "application/x-amz-json-1.1"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "bucket.localhost"])
def test_a_foreign_host_is_refused(clients: Clients, host: str) -> None:
    for method, path in (("POST", "/"), ("GET", "/"), ("POST", "/endpoints/e/invocations"), ("GET", "/-/health")):
        assert post(clients.url, "{}", LIST if path == "/" else {}, host, path, method)[0] in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://localhost:1"])
def test_a_foreign_origin_is_refused(clients: Clients, origin: str) -> None:
    status, body = post(clients.url, "{}", {**LIST, "Origin": origin})
    assert status == 403
    assert "is not this machine" in body


def test_our_own_host_and_origin_are_not(clients: Clients) -> None:
    port = urllib.parse.urlsplit(clients.url).port
    assert post(clients.url, "{}", LIST, f"localhost:{port}")[0] == 200
    assert post(clients.url, "{}", {**LIST, "Origin": clients.url})[0] == 200


def test_it_listens_on_loopback_only(state: Path) -> None:
    import psutil

    pid = json.loads((state / "service.json").read_text())["pid"]
    listening = [c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert oct(state.stat().st_mode & 0o077) == "0o0"
    assert oct((state / "state.db").stat().st_mode & 0o077) == "0o0"


@pytest.mark.parametrize(
    ("target", "body", "code", "words"),
    [
        ("SageMaker.BakeBread", "{}", "UnknownOperationException", "BakeBread"),
        ("SageMaker.CreateAutoMLJob", "{}", "NotImplemented", "CreateAutoMLJob is not supported"),
        ("SageMaker.ListPipelines", "{", "SerializationException", "not JSON"),
        ("SageMaker.ListPipelines", "[]", "ValidationException", "an object"),
        ("SageMaker.ListPipelines", '{"Colour": 1}', "ValidationException", "'Colour' is unknown"),
        ("SageMaker.DescribePipeline", "{}", "ValidationException", "'PipelineName' is required"),
        ("Logs_20140328.PutLogEvents", "{}", "NotImplemented", "logs:PutLogEvents"),
        ("DynamoDB_20120810.ListTables", "{}", "UnknownOperationException", "DynamoDB"),
    ],
)
def test_errors_have_aws_codes(clients: Clients, target: str, body: str, code: str, words: str) -> None:
    status, text = post(clients.url, body, {**LIST, "X-Amz-Target": target})
    answer = json.loads(text)
    assert (status, answer["__type"]) == (400, code)
    assert words in answer["message"]


def test_every_operation_refuses_what_is_not_in_its_model(clients: Clients) -> None:
    for operation in OPERATIONS:
        status, text = post(clients.url, '{"NoSuchField": 1}', {**LIST, "X-Amz-Target": f"SageMaker.{operation}"})
        assert (status, json.loads(text)["__type"]) == (400, "ValidationException"), operation


def test_requests_of_an_unreasonable_size_are_refused(clients: Clients) -> None:
    status, text = post(clients.url, b" " * (17 << 20), LIST)
    assert status == 413
    assert "larger than" in text


def test_identity_and_tags(clients: Clients) -> None:
    sts = client("sts", clients.url)
    assert sts.get_caller_identity()["Account"] == "000000000000"
    with pytest.raises(sts.exceptions.ClientError, match="AssumeRole"):
        sts.assume_role(RoleArn="arn:aws:iam::000000000000:role/r", RoleSessionName="s1")
    definition = json.dumps(pipeline([processing("P", "pass")]))
    role = "arn:aws:iam::000000000000:role/SageMaker"
    arn = clients.sm.create_pipeline(
        PipelineName="tagged", PipelineDefinition=definition, RoleArn=role, Tags=[{"Key": "a", "Value": "1"}]
    )["PipelineArn"]
    clients.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    assert clients.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    clients.sm.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert clients.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]


def test_logs_page_and_filter(clients: Clients) -> None:
    code = "import sys; [print('line', n) for n in range(25)]; print('\\rold\\rnew'); print('ERROR: end', end='')"
    clients.sm.create_processing_job(ProcessingJobName="talkative", **processing("P", code)["Arguments"])
    until(
        lambda: clients.sm.describe_processing_job(ProcessingJobName="talkative"),
        lambda job: job["ProcessingJobStatus"] == "Completed",
    )
    group = "/aws/sagemaker/ProcessingJobs"
    (stream,) = clients.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="talkative/")["logStreams"]
    assert stream["logStreamName"].startswith("talkative/algo-1-")
    where = {"logGroupName": group, "logStreamName": stream["logStreamName"]}

    seen: list[str] = []
    token: dict[str, str] = {}
    for _ in range(4):
        answer = clients.logs.get_log_events(**where, startFromHead=True, limit=10, **token)
        seen += [event["message"] for event in answer["events"]]
        token = {"nextToken": answer["nextForwardToken"]}
    assert seen[:26] == [*(f"line {n}" for n in range(25)), "new"]
    answer = until(  # the last line has no end: it counts once it has been quiet for two seconds
        lambda: clients.logs.get_log_events(**where, limit=2), lambda answer: "ERROR" in str(answer["events"])
    )
    assert [event["message"] for event in answer["events"]] == ["new", "ERROR: end"]
    before = clients.logs.get_log_events(**where, limit=2, nextToken=answer["nextBackwardToken"])["events"]
    assert [event["message"] for event in before] == ["line 23", "line 24"]
    assert abs(before[0]["timestamp"] / 1000 - time.time()) < 60
    found = clients.logs.filter_log_events(logGroupName=group, logStreamNamePrefix="talkative/", filterPattern="ERROR")
    assert [event["message"] for event in found["events"]] == ["ERROR: end"]
    for wrong in ({**where, "logStreamName": "nobody/algo-1"}, {**where, "logStreamName": "../../state"}):
        with pytest.raises(clients.logs.exceptions.ResourceNotFoundException):
            clients.logs.get_log_events(**wrong)
    with pytest.raises(clients.logs.exceptions.ResourceNotFoundException):
        clients.logs.describe_log_streams(logGroupName="/aws/sagemaker/../..")


def test_two_callers_start_one_service(tmp_path: Path) -> None:
    state = tmp_path / "state"
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(service.ensure_running(state))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(set(urls)) == 1
        assert len(urls) == 4
        assert service.running(state) == urls[0]
        # A second one on the same directory is refused.
        command = [sys.executable, "-m", "pipelines.local", "--state", str(state)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2
        assert "another service runs on" in refused.stderr
    finally:
        assert service.stop(state)
    assert service.running(state) is None
    assert service.stop(state) is False
    assert processes(tmp_path) == []


def test_a_service_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(service.ServiceFailed, match="--slots must be at least 1"):
        service.ensure_running(tmp_path, ["--slots", "0"])


def test_start_is_quick_and_drags_nothing_heavy_in() -> None:
    heavy = ("torch", "sagemaker", "optuna", "numpy", "boto3")
    code = f"import sys, pipelines.local.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


LONG = "import time; print('running', flush=True); time.sleep(300)"


def start_long(clients: Clients) -> str:
    """An execution whose one job runs for long; it is running when this returns."""
    arn = clients.start(pipeline([processing("Long", LONG)]), "long")
    uri = clients.put("code/long.tar.gz", bundle(train=LONG))
    clients.sm.create_training_job(TrainingJobName="long", **training_request(uri))
    until(
        lambda: clients.sm.describe_training_job(TrainingJobName="long"),
        lambda job: job["SecondaryStatus"] == "Training",
    )
    until(lambda: clients.steps(arn).get("Long", {}).get("Metadata", {}), bool)
    return arn


def test_stopping_the_service_stops_its_jobs_and_a_restart_remembers(tmp_path: Path) -> None:
    clients = Clients(service.ensure_running(tmp_path, ["--slots", "2"]))
    try:
        clients.put("kept", "object")
        done = clients.start(pipeline([processing("P", "pass")]), "done")
        clients.wait(done)
        arn = start_long(clients)
        assert service.stop(tmp_path)
        assert processes(tmp_path) == []
        clients = Clients(service.ensure_running(tmp_path))
        execution = clients.sm.describe_pipeline_execution(PipelineExecutionArn=arn)
        assert execution["PipelineExecutionStatus"] == "Stopped"
        assert "service was stopped" in execution["FailureReason"]
        assert clients.sm.describe_training_job(TrainingJobName="long")["TrainingJobStatus"] == "Stopped"
        assert clients.wait(done)["PipelineExecutionStatus"] == "Succeeded"
        assert clients.steps(done)["P"]["StepStatus"] == "Succeeded"
        assert clients.s3.get_object(Bucket="sagemaker-us-east-1-000000000000", Key="kept")["Body"].read() == b"object"
    finally:
        service.stop(tmp_path)


def test_after_a_kill_nothing_is_left_running_and_the_record_says_so(tmp_path: Path) -> None:
    clients = Clients(service.ensure_running(tmp_path, ["--slots", "2"]))
    try:
        arn = start_long(clients)
        os.kill(json.loads((tmp_path / "service.json").read_text())["pid"], signal.SIGKILL)
        until(lambda: service.is_locked(tmp_path), lambda locked: not locked)
        assert processes(tmp_path) != []  # the jobs live on: nobody was there to end them
        clients = Clients(service.ensure_running(tmp_path))
        execution = clients.sm.describe_pipeline_execution(PipelineExecutionArn=arn)
        assert execution["PipelineExecutionStatus"] == "Failed"
        assert "ended unexpectedly" in execution["FailureReason"]
        assert clients.steps(arn)["Long"]["StepStatus"] == "Failed"
        assert clients.sm.describe_training_job(TrainingJobName="long")["TrainingJobStatus"] == "Failed"
        jobs = [line for line in processes(tmp_path) if "/jobs/" in line or "toolkit" in line or LONG in line]
        assert jobs == []
    finally:
        service.stop(tmp_path)
    assert processes(tmp_path) == []


def test_stop_ends_what_a_killed_service_left(tmp_path: Path) -> None:
    clients = Clients(service.ensure_running(tmp_path, ["--slots", "2"]))
    try:
        start_long(clients)
        os.kill(json.loads((tmp_path / "service.json").read_text())["pid"], signal.SIGKILL)
        until(lambda: service.is_locked(tmp_path), lambda locked: not locked)
        assert service.stop(tmp_path) is False
        until(lambda: processes(tmp_path), lambda left: left == [])
    finally:
        service.stop(tmp_path)
