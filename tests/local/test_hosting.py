"""Models, endpoints and the runtime, through boto3."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.local import service
from tests.local.conftest import processes
from tests.local.definitions import IMAGE, INFERENCE, ROLE, Clients, client, model_archive, until

GROUP = "/aws/sagemaker/Endpoints"


def deploy(
    clients: Clients, name: str, archive: bytes, update: bool = False, version: str = "1", **variant: Any
) -> dict[str, Any]:
    """Create or update an endpoint; its description once that has ended."""
    full = f"{name}-{version}"
    uri = clients.put(f"models/{full}/model.tar.gz", archive)
    container = {"Image": IMAGE, "ModelDataUrl": uri}
    clients.sm.create_model(ModelName=full, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    production = {"VariantName": "AllTraffic", "ModelName": full, "InstanceType": "ml.m5.large", **variant}
    production.setdefault("InitialInstanceCount", 1)
    clients.sm.create_endpoint_config(EndpointConfigName=full, ProductionVariants=[production])
    call = clients.sm.update_endpoint if update else clients.sm.create_endpoint
    call(EndpointName=name, EndpointConfigName=full)
    return until(
        lambda: clients.sm.describe_endpoint(EndpointName=name),
        lambda endpoint: endpoint["EndpointStatus"] in ("InService", "Failed"),
    )


def invoke(clients: Clients, name: str, body: Any, content_type: str = "application/json", **more: Any) -> Any:
    """The endpoint's answer, decoded."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = clients.runtime.invoke_endpoint(EndpointName=name, ContentType=content_type, Body=content, **more)
    return json.loads(answer["Body"].read())


@pytest.fixture(scope="module")
def endpoint(clients: Clients) -> Iterator[str]:
    deploy(clients, "steady", model_archive(2))
    yield "steady"
    clients.sm.delete_endpoint(EndpointName="steady")


def test_an_endpoint_answers(clients: Clients, endpoint: str) -> None:
    described = clients.sm.describe_endpoint(EndpointName=endpoint)
    assert described["EndpointStatus"] == "InService"
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 1
    assert invoke(clients, endpoint, {"x": 21}, Accept="text/x") == {"y": 42.0, "accept": "text/x"}
    answer = clients.runtime.invoke_endpoint(EndpointName=endpoint, ContentType="application/json", Body=b'{"x": 1}')
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == "AllTraffic"


def test_the_clients_mistake_is_a_model_error(clients: Clients, endpoint: str) -> None:
    with pytest.raises(clients.runtime.exceptions.ModelError) as caught:
        invoke(clients, endpoint, b"x", "text/plain")
    answer = caught.value.response
    assert answer["OriginalStatusCode"] == 415
    assert json.loads(answer["OriginalMessage"]) == {"error": "send application/json, not text/plain"}
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert answer["Error"]["Message"].startswith("Received client error (415) from primary")


def test_the_models_mistake_has_its_traceback_in_the_log_only(clients: Clients, endpoint: str) -> None:
    with pytest.raises(clients.runtime.exceptions.ModelError) as caught:
        invoke(clients, endpoint, {"z": 1})
    assert caught.value.response["OriginalStatusCode"] == 500
    assert "KeyError" not in str(caught.value.response)
    group = f"{GROUP}/{endpoint}"
    events = clients.logs.filter_log_events(logGroupName=group, filterPattern="KeyError")["events"]
    assert events[0]["message"] == "KeyError: 'x'"
    assert events[0]["logStreamName"].startswith("AllTraffic/i-")


def test_limits_and_unknown_endpoints(clients: Clients, endpoint: str) -> None:
    with pytest.raises(clients.runtime.exceptions.ClientError, match="larger than 6291456 bytes"):
        invoke(clients, endpoint, b"x" * (6 * 1024 * 1024 + 1))
    with pytest.raises(clients.runtime.exceptions.ClientError, match=r"nobody .* not found"):
        invoke(clients, "nobody", {})
    with pytest.raises(clients.runtime.exceptions.ClientError, match="Variant Other"):
        invoke(clients, endpoint, {}, TargetVariant="Other")
    assert invoke(clients, endpoint, {"x": 1})["y"] == 2.0


def test_a_server_that_dies_is_started_again(clients: Clients, endpoint: str) -> None:
    with pytest.raises(clients.runtime.exceptions.ClientError):
        invoke(clients, endpoint, "die")

    def alive() -> bool:
        try:
            return bool(invoke(clients, endpoint, {"x": 1})["y"] == 2.0)
        except clients.runtime.exceptions.ClientError:
            return False

    assert until(alive, bool)


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        ("raise ValueError('no weights')", "ValueError: no weights"),
        ("def model_fn(d): pass", "code/inference.py has no input_fn, predict_fn, output_fn"),
        (INFERENCE.replace("float(file.read())", "int('x')"), "ValueError: invalid literal"),
    ],
)
def test_a_model_that_does_not_load_fails_the_endpoint(clients: Clients, inference: str, words: str) -> None:
    name = f"broken-{abs(hash(words))}"
    described = deploy(clients, name, model_archive(1, inference))
    assert described["EndpointStatus"] == "Failed"
    assert "did not pass the ping health check" in described["FailureReason"]
    assert words in described["FailureReason"]
    clients.sm.delete_endpoint(EndpointName=name)


def test_an_update_loses_no_request_and_a_failed_one_changes_nothing(clients: Clients, state: Path) -> None:
    deploy(clients, "moving", model_archive(1), InitialInstanceCount=2)
    assert len([line for line in processes(state) if "model_server" in line and "/moving/" in line]) == 2
    answers: list[float] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        runtime = client("sagemaker-runtime", clients.url)
        while not stop.is_set():
            try:
                answer = runtime.invoke_endpoint(
                    EndpointName="moving", ContentType="application/json", Body=b'{"x": 1}'
                )
                answers.append(json.loads(answer["Body"].read())["y"])
            except Exception as error:  # counted, whatever it is
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        described = deploy(clients, "moving", model_archive(3), update=True, version="2")
        assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "moving-2")
        until(lambda: answers[-1:], lambda last: last == [3.0])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert answers.index(3.0) > 0
    assert set(answers) == {1.0, 3.0}

    described = deploy(clients, "moving", model_archive(4, "raise SystemExit(1)"), update=True, version="3")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "moving-2")
    assert "health check" in described["FailureReason"]
    assert invoke(clients, "moving", {"x": 1})["y"] == 3.0
    clients.sm.delete_endpoint(EndpointName="moving")
    with pytest.raises(clients.sm.exceptions.ClientError, match="Could not find endpoint"):
        clients.sm.describe_endpoint(EndpointName="moving")
    assert [line for line in processes(state) if "/moving/" in line] == []


def test_an_archive_can_not_write_outside(clients: Clients, state: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("../../../../escaped.txt")
        archive.addfile(member, io.BytesIO(b""))
    described = deploy(clients, "escaping", buffer.getvalue())
    assert described["EndpointStatus"] == "Failed"
    assert "outside the destination" in described["FailureReason"]
    assert not list(state.rglob("escaped.txt"))
    clients.sm.delete_endpoint(EndpointName="escaping")


def test_packages_versions_and_approval(clients: Clients) -> None:
    uri = clients.put("models/package/model.tar.gz", model_archive(5))
    specification = {
        "Containers": [{"Image": IMAGE, "ModelDataUrl": uri}],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
    }
    with pytest.raises(clients.sm.exceptions.ClientError, match="does not exist"):
        clients.sm.create_model_package(ModelPackageGroupName="packed", InferenceSpecification=specification)
    clients.sm.create_model_package_group(ModelPackageGroupName="packed", ModelPackageGroupDescription="d")
    arns = [
        clients.sm.create_model_package(
            ModelPackageGroupName="packed",
            InferenceSpecification=specification,
            ModelApprovalStatus="PendingManualApproval",
        )["ModelPackageArn"]
        for _ in range(2)
    ]
    assert [arn.rsplit("/", 2)[-2:] for arn in arns] == [["packed", "1"], ["packed", "2"]]
    clients.sm.update_model_package(
        ModelPackageArn=arns[1], ModelApprovalStatus="Approved", CustomerMetadataProperties={"loss": "0.5"}
    )
    described = clients.sm.describe_model_package(ModelPackageName=arns[1])
    assert (described["ModelApprovalStatus"], described["CustomerMetadataProperties"]) == ("Approved", {"loss": "0.5"})
    listed = clients.sm.list_model_packages(ModelPackageGroupName="packed")["ModelPackageSummaryList"]
    assert [item["ModelPackageVersion"] for item in listed] == [2, 1]
    approved = clients.sm.list_model_packages(ModelPackageGroupName="packed", ModelApprovalStatus="Approved")
    assert [item["ModelPackageArn"] for item in approved["ModelPackageSummaryList"]] == [arns[1]]

    # A model by its package, as the approval pipeline deploys it.
    clients.sm.create_model(ModelName="packed", PrimaryContainer={"ModelPackageName": arns[1]}, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "A", "ModelName": "packed", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    clients.sm.create_endpoint_config(EndpointConfigName="packed", ProductionVariants=[variant])
    clients.sm.create_endpoint(EndpointName="packed", EndpointConfigName="packed")
    clients.sm.get_waiter("endpoint_in_service").wait(EndpointName="packed", WaiterConfig={"Delay": 1})
    assert invoke(clients, "packed", {"x": 2})["y"] == 10.0
    assert "packed" in [item["EndpointName"] for item in clients.sm.list_endpoints()["Endpoints"]]
    clients.sm.delete_endpoint(EndpointName="packed")
    clients.sm.delete_endpoint_config(EndpointConfigName="packed")
    clients.sm.delete_model(ModelName="packed")
    with pytest.raises(clients.sm.exceptions.ClientError, match="still holds"):
        clients.sm.delete_model_package_group(ModelPackageGroupName="packed")
    for arn in arns:
        clients.sm.delete_model_package(ModelPackageName=arn)
    clients.sm.delete_model_package_group(ModelPackageGroupName="packed")


def test_endpoints_come_back_with_the_service(tmp_path: Path) -> None:
    first = Clients(service.ensure_running(tmp_path))
    try:
        deploy(first, "returning", model_archive(7))
        assert service.stop(tmp_path)
        assert processes(tmp_path) == []
        second = Clients(service.ensure_running(tmp_path))
        assert invoke(second, "returning", {"x": 1})["y"] == 7.0
        described = second.sm.describe_endpoint(EndpointName="returning")
        assert described["EndpointStatus"] == "InService"
    finally:
        service.stop(tmp_path)
    assert processes(tmp_path) == []
