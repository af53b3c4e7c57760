"""Endpoints: a server process per instance of a variant, and the way of a request to one of them.

An update starts the new servers first, sends new requests there once they are healthy, and stops the old ones when
their last request has been answered. After a restart of the service the endpoints that were in service come back.
"""

import http.client
import json
import logging
import os
import random
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.local import container, logs, objects, registry
from pipelines.local.container import Container
from pipelines.local.errors import JobError, ServiceError, invalid
from pipelines.local.machine import Machine, Task
from pipelines.local.model_server import LARGEST_BODY
from pipelines.local.names import ACCOUNT, arn
from pipelines.local.processing import found
from pipelines.local.store import Document, Exists, Store

log = logging.getLogger(__name__)

ENDPOINT = "endpoint"
CONFIG = "endpoint-config"
_SERVER = Path(__file__).with_name("model_server.py")
_TIMEOUT = 60.0  # seconds a model has to answer, as on AWS
_STARTUP = 300.0  # seconds a server has to come up, unless the variant says otherwise
_DRAIN = 65.0  # seconds for requests under way when an endpoint is updated: a little over _TIMEOUT
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL for a server
_RESTARTS = 3  # times a server that dies is started again within _CALM seconds
_CALM = 60.0
_PASSED_ON = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes")


@dataclass
class Server:
    """One instance: its container, and its process while it runs."""

    variant: str
    container: Container
    index: logs.Index
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    busy: int = 0
    """Requests under way."""

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> "Answer":
        """One HTTP request to the server process."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            kept = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read(), kept, self.variant)
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """What a model said. Header names are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    variant: str


@dataclass
class Fleet:
    """The servers of an endpoint in one configuration."""

    config: str
    weights: dict[str, float]
    servers: list[Server] = field(default_factory=list)
    closed: bool = False
    lock: threading.Condition = field(default_factory=threading.Condition)

    def take(self, target: str | None) -> Server:
        """The least busy server of the target variant, or of one drawn by weight."""
        if target is not None and target not in self.weights:
            raise invalid(f"Variant {target} is not there; the endpoint has {', '.join(self.weights)}")
        names, weights = list(self.weights), list(self.weights.values())
        if not any(weights):
            weights = [1.0] * len(names)
        variant = target or random.choices(names, weights)[0]  # noqa: S311 - traffic, no secret
        with self.lock:
            server = min((one for one in self.servers if one.variant == variant), key=lambda one: one.busy)
            server.busy += 1
        return server

    def give_back(self, server: Server) -> None:
        """A request has been answered."""
        with self.lock:
            server.busy -= 1
            self.lock.notify_all()

    def close(self, store: Store, drain: float) -> None:
        """Stop the servers, after at most `drain` seconds for the requests under way."""
        self.closed = True
        with self.lock:
            self.lock.wait_for(lambda: not any(server.busy for server in self.servers), drain)
        container.terminate([server.process for server in self.servers if server.process], lambda: _GRACE)
        for server in self.servers:
            store.delete("process", server.container.name)


class Hosting:
    """All endpoints of the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._fleets: dict[str, Fleet] = {}
        self._lock = threading.Lock()

    # --- configurations

    def create_config(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateEndpointConfig."""
        name = request["EndpointConfigName"]
        for option in ("AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants"):
            if option in request:
                raise invalid(f"{option} is not supported on this machine")
        variants = [variant["VariantName"] for variant in request["ProductionVariants"]]
        if len(set(variants)) != len(variants):
            raise invalid(f"Variant names must be unique: {variants}")
        for variant in request["ProductionVariants"]:
            if "ModelName" not in variant:
                raise invalid(f"Variant {variant['VariantName']}: ModelName is required on this machine")
            registry.model(self.machine, variant["ModelName"])
        document = {**request, "EndpointConfigArn": arn(CONFIG, name)}
        document.pop("Tags", None)
        try:
            self.machine.store.create(CONFIG, name, document)
        except Exists:
            raise invalid(f"Cannot create already existing endpoint configuration {arn(CONFIG, name)}.") from None
        return {"EndpointConfigArn": document["EndpointConfigArn"]}

    def config(self, name: str) -> Document:
        """A configuration by name."""
        document = self.machine.store.find(CONFIG, name)
        if document is None:
            raise invalid(f'Could not find endpoint configuration "{arn(CONFIG, name)}".')
        return document

    # --- endpoints

    def exists(self, name: str) -> bool:
        """Whether there is an endpoint of that name."""
        return self.machine.store.find(ENDPOINT, name) is not None

    def endpoint(self, name: str) -> Document:
        """An endpoint by name."""
        document = self.machine.store.find(ENDPOINT, name)
        if document is None:
            raise invalid(f'Could not find endpoint "{arn(ENDPOINT, name)}".')
        return document

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateEndpoint: answers at once; the endpoint is Creating until its servers are healthy."""
        name, config = request["EndpointName"], self.config(request["EndpointConfigName"])
        document: Document = {
            "EndpointName": name,
            "EndpointArn": arn(ENDPOINT, name),
            "EndpointConfigName": config["EndpointConfigName"],
            "EndpointStatus": "Creating",
        }
        if "DeploymentConfig" in request:
            document["LastDeploymentConfig"] = request["DeploymentConfig"]
        try:
            self.machine.store.create(ENDPOINT, name, document)
        except Exists:
            raise invalid(f"Cannot create already existing endpoint {arn(ENDPOINT, name)}.") from None
        self._start(name, lambda task: self._deploy(task, name, config, "Failed"))
        return {"EndpointArn": document["EndpointArn"]}

    def update(self, request: dict[str, Any]) -> dict[str, Any]:
        """UpdateEndpoint: the endpoint keeps answering as it was until the new servers are healthy, or for good."""
        name, config = request["EndpointName"], self.config(request["EndpointConfigName"])

        def begin(document: Document) -> None:
            if document["EndpointStatus"] not in ("InService", "Failed"):
                raise invalid(f'Cannot update in-progress endpoint "{document["EndpointArn"]}".')
            document["EndpointStatus"] = "Updating"
            document.pop("FailureReason", None)
            if "DeploymentConfig" in request:
                document["LastDeploymentConfig"] = request["DeploymentConfig"]
            elif not request.get("RetainDeploymentConfig"):
                document.pop("LastDeploymentConfig", None)

        self.endpoint(name)
        document = self.machine.store.change(ENDPOINT, name, begin)
        otherwise = "InService" if name in self._fleets else "Failed"
        self._start(name, lambda task: self._deploy(task, name, config, otherwise))
        return {"EndpointArn": document["EndpointArn"]}

    def delete(self, name: str) -> None:
        """DeleteEndpoint; a deployment under way is given up."""
        self.endpoint(name)
        task = self.machine.task(ENDPOINT, name)
        if task:
            task.stop()
            task.done.wait()
        with self._lock:
            fleet = self._fleets.pop(name, None)
        self.machine.store.delete(ENDPOINT, name)
        if fleet:
            fleet.close(self.machine.store, 0.0)
        shutil.rmtree(self.machine.state / "endpoints" / name, ignore_errors=True)

    def wait(self, name: str) -> None:
        """Until no deployment of the endpoint is under way."""
        self.machine.wait(ENDPOINT, name)

    def restore(self) -> None:
        """After a start of the service: bring back what was in service, and give up what was only on its way."""
        for document in self.machine.store.list(ENDPOINT):
            name, status = document["EndpointName"], document["EndpointStatus"]
            if status == "Creating":
                reason = "The local service was stopped while the endpoint was created."
                self.machine.store.update(ENDPOINT, name, EndpointStatus="Failed", FailureReason=reason)
            elif status in ("InService", "Updating", "SystemUpdating"):
                self.machine.store.update(ENDPOINT, name, EndpointStatus="SystemUpdating")
                self._restore(name, document["EndpointConfigName"])

    def _restore(self, name: str, config_name: str) -> None:
        try:
            config = self.config(config_name)
        except ServiceError as error:  # AWS lets one delete it; its servers would have gone on there
            self.machine.store.update(ENDPOINT, name, EndpointStatus="Failed", FailureReason=str(error))
        else:
            self._start(name, lambda task: self._deploy(task, name, config, "Failed"))

    def close(self) -> None:
        """Stop all servers; the endpoints stay InService on record and come back with the service."""
        with self._lock:
            fleets = list(self._fleets.values())
            self._fleets.clear()
        for fleet in fleets:
            fleet.close(self.machine.store, 2.0)

    # --- deployments

    def _start(self, name: str, run: Callable[[Task], None]) -> None:
        self.machine.start(ENDPOINT, name, run)

    def _deploy(self, task: Task, name: str, config: Document, otherwise: str) -> None:
        """Bring up the servers of a configuration and switch over; if they do not come up, say `otherwise` and why."""
        folder = self.machine.state / "endpoints" / name / secrets.token_hex(4)
        variants = config["ProductionVariants"]
        fleet = Fleet(
            config["EndpointConfigName"],
            {variant["VariantName"]: float(variant.get("InitialVariantWeight", 1.0)) for variant in variants},
        )
        try:
            for variant in variants:
                for number in range(variant.get("InitialInstanceCount", 1)):
                    fleet.servers.append(self._server(name, variant, folder / f"{variant['VariantName']}-{number}"))
            for server in fleet.servers:  # all start at once, then each is waited for
                self._launch(server)
            limits = {one["VariantName"]: one.get("ContainerStartupHealthCheckTimeoutInSeconds") for one in variants}
            for server in fleet.servers:
                self._await_health(task, server, limits[server.variant] or _STARTUP)
        except (JobError, ServiceError, OSError) as error:
            fleet.close(self.machine.store, 0.0)
            shutil.rmtree(folder, ignore_errors=True)
            if not task.stopping:
                self.machine.store.update(ENDPOINT, name, EndpointStatus=otherwise, FailureReason=str(error)[:1024])
            return
        except Exception as error:
            fleet.close(self.machine.store, 0.0)
            reason = f"InternalServerError: {error!r}; see service.log"
            self.machine.store.update(ENDPOINT, name, EndpointStatus=otherwise, FailureReason=reason[:1024])
            raise
        with self._lock:
            old = self._fleets.get(name)
            self._fleets[name] = fleet
        summaries = [self._summary(variant) for variant in variants]

        def done(document: Document) -> None:
            document |= {"EndpointStatus": "InService", "EndpointConfigName": fleet.config}
            document["ProductionVariants"] = summaries
            document.pop("FailureReason", None)

        self.machine.store.change(ENDPOINT, name, done)
        for server in fleet.servers:
            threading.Thread(target=self._keep, args=(name, fleet, server), daemon=True).start()
        if old:
            old.close(self.machine.store, _DRAIN)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _summary(self, variant: Document) -> Document:
        """As DescribeEndpoint shows a variant."""
        weight, count = float(variant.get("InitialVariantWeight", 1.0)), variant.get("InitialInstanceCount", 1)
        summary = {
            "VariantName": variant["VariantName"],
            "CurrentWeight": weight,
            "DesiredWeight": weight,
            "CurrentInstanceCount": count,
            "DesiredInstanceCount": count,
        }
        image = registry.image(self.machine, registry.container_of(registry.model(self.machine, variant["ModelName"])))
        if image:
            deployed = {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": time.time()}
            summary["DeployedImages"] = [deployed]
        return summary

    def _server(self, endpoint: str, variant: Document, root: Path) -> Server:
        model = registry.model(self.machine, variant["ModelName"])
        uri, given = registry.model_data(self.machine, registry.container_of(model))
        archive = root / "opt" / "ml" / "input"
        files = found(self.machine, uri)
        if len(files) != 1:
            raise JobError(f"Model data {uri} holds {len(files)} objects: expected one model.tar.gz")
        objects.place([("model.tar.gz", files[0][1])], archive)
        command = ["python3", "-P", str(_SERVER), "--archive", "/opt/ml/input/model.tar.gz"]
        command += ["--directory", "/opt/ml/model", "--ready", "/opt/ml/port"]
        name = variant["VariantName"]
        log_file = self.machine.logs.stream(f"{logs.ENDPOINTS}/{endpoint}", f"{name}/i-{secrets.token_hex(8)}")
        return Server(
            name,
            Container(
                name=f"{endpoint}/{root.parent.name}/{root.name}",
                root=root,
                command=command,
                log=log_file,
                environment={"SM_MODEL_DIR": "/opt/ml/model", **{key: text for key, text in given.items() if text}},
                threads=os.cpu_count() or 1,
            ),
            logs.Index(log_file),
        )

    def _launch(self, server: Server) -> None:
        (server.container.opt_ml / "port").unlink(missing_ok=True)
        server.process = container.start(self.machine, server.container)

    def _await_health(self, task: Task | None, server: Server, timeout: float) -> None:
        """Until the server answers /ping.

        Raises:
            JobError: it ended or did not answer in time, with the last lines of its log.
        """
        deadline = time.monotonic() + timeout
        port = server.container.opt_ml / "port"
        assert server.process is not None
        while True:
            if port.exists():
                server.port = int(port.read_text())
                try:
                    if server.ask("GET", "/ping").status == 200:
                        server.index.note()
                        return
                except OSError:
                    pass  # it has the port but does not answer yet
            ended = server.process.poll() is not None
            if ended or time.monotonic() > deadline or (task and task.stopping):
                what = "ended" if ended else f"did not answer within {timeout:.0f} s"
                server.index.note()
                raise JobError(
                    f"The primary container for production variant {server.variant} did not pass the ping health check:"
                    f" it {what}. The last lines of its log:\n{logs.tail(server.container.log, 5)}"
                )
            time.sleep(0.05)

    def _keep(self, name: str, fleet: Fleet, server: Server) -> None:
        """Start a server again that ends by itself; give up when it does so again and again."""
        died: list[float] = []
        while True:
            assert server.process is not None
            server.process.wait()
            if fleet.closed or self.machine.closing:
                return
            died = [when for when in died if time.monotonic() - when < _CALM] + [time.monotonic()]
            log.warning("endpoint %s: %s ended with %s", name, server.container.name, server.process.returncode)
            try:
                if len(died) > _RESTARTS:
                    raise JobError(f"Its server ended {len(died)} times within {_CALM:.0f} s")
                container.terminate([server.process], lambda: 0.0)  # what it left behind
                self._launch(server)
                self._await_health(None, server, _STARTUP)
            except (JobError, OSError) as error:
                if self._fleets.get(name) is fleet:
                    text = f"{error}\n{logs.tail(server.container.log, 5)}"[:1024]
                    self.machine.store.update(ENDPOINT, name, EndpointStatus="Failed", FailureReason=text)
                return

    # --- requests

    def invoke(self, name: str, body: bytes, headers: Mapping[str, str], target: str | None) -> Answer:
        """InvokeEndpoint.

        Raises:
            ServiceError: no such endpoint, not in service, too large, or ModelError (424) when the model answers with
                an error; that one carries `OriginalStatusCode` and `OriginalMessage` in its message as JSON.
        """
        if len(body) > LARGEST_BODY:
            raise ServiceError("ValidationError", f"The request is larger than {LARGEST_BODY} bytes", 413)
        document = self.machine.store.find(ENDPOINT, name)
        if document is None:
            raise ServiceError("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        if document["EndpointStatus"] == "SystemUpdating":  # the service has just come up: so will the endpoint
            self.wait(name)
        fleet = self._fleets.get(name)
        if fleet is None or self.endpoint(name)["EndpointStatus"] == "Failed":
            raise ServiceError("ValidationError", f"Endpoint {name} is not InService but {document['EndpointStatus']}")
        server = fleet.take(target)
        try:
            passed = {key: value for key, value in headers.items() if key in _PASSED_ON}
            answer = server.ask("POST", "/invocations", body, passed)
        except TimeoutError:
            raise _model_error(name, 408, f"the model did not answer within {_TIMEOUT:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError("ServiceUnavailable", f"The model's server does not answer: {error}", 503) from None
        finally:
            fleet.give_back(server)
            server.index.note()
        if answer.status >= 400:
            raise _model_error(name, answer.status, answer.body.decode(errors="replace"))
        return answer


def _model_error(name: str, status: int, message: str) -> ServiceError:
    side, whose = ("server", "INTERNAL_FAILURE") if status >= 500 else ("client", "CLIENT_ERROR")
    document = {
        "ErrorCode": f"{whose}_FROM_MODEL",
        "LogStreamArn": f"{logs.ENDPOINTS}/{name}",
        "Message": f'Received {side} error ({status}) from primary with message "{message}".'
        f" See the log group {logs.ENDPOINTS}/{name}.",
        "OriginalMessage": message,
        "OriginalStatusCode": status,
    }
    return ServiceError("ModelError", json.dumps(document), 424)
