"""Runs pipeline executions.

An execution has one thread that decides and one for each step that is running. A step runs once everything it refers
to or depends on has succeeded; a step in a branch that was not taken, or that needs such a step, never runs.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipelines import service_model
from pipelines.local import (
    caching,
    conditions,
    definition,
    hosting,
    names,
    processing,
    references,
    registry,
    training,
    tuning,
)
from pipelines.local.definition import Definition, Step
from pipelines.local.errors import ServiceError
from pipelines.local.machine import SERVICE_DIED, Machine, Task
from pipelines.local.store import Document

log = logging.getLogger(__name__)

EXECUTION = "execution"
STEP = "step"
ONE_FAILED = "Step failure: One or multiple steps failed."
_LONGEST_REASON = 1024
_SKIPPED = "Skipped"  # kept here only: AWS does not list a step that never ran


class StepFailed(Exception):
    """Why a step failed: its FailureReason."""


def start(machine: Machine, host: hosting.Hosting, execution_arn: str) -> None:
    """Run an execution that has been noted in the store."""
    machine.start(EXECUTION, execution_arn, lambda task: Run(machine, host, execution_arn, task).run())


def mark_interrupted(machine: Machine) -> None:
    """After a service that died: what it was running has failed. (A service that was stopped has noted that itself.)"""
    now = time.time()
    for execution in machine.store.list(EXECUTION):
        if execution["PipelineExecutionStatus"] in ("Executing", "Stopping"):
            arn = execution["PipelineExecutionArn"]
            for step in machine.store.list(STEP, parent=arn):
                if step["StepStatus"] in ("Starting", "Executing", "Stopping"):
                    fields = {"StepStatus": "Failed", "FailureReason": SERVICE_DIED, "EndTime": now}
                    machine.store.update(STEP, f"{arn}/{step['StepName']}", **fields)
            machine.store.update(EXECUTION, arn, PipelineExecutionStatus="Failed", FailureReason=SERVICE_DIED)
    for kind, label, end in (
        (processing.KIND, "ProcessingJob", "ProcessingEndTime"),
        (training.KIND, "TrainingJob", "TrainingEndTime"),
        (tuning.KIND, "HyperParameterTuningJob", "HyperParameterTuningEndTime"),
    ):
        for job in machine.store.list(kind):
            if job[f"{label}Status"] in ("InProgress", "Stopping"):
                more: Document = {"SecondaryStatus": "Failed"} if kind == training.KIND else {}
                if job.get("ObjectiveStatus") == "Pending":
                    more["ObjectiveStatus"] = "Failed"
                fields = {f"{label}Status": "Failed", "FailureReason": SERVICE_DIED, end: now, **more}
                machine.store.update(kind, job[f"{label}Name"], **fields)
                if kind == tuning.KIND:  # its trials were marked just before
                    tuning.publish(machine, job[f"{label}Name"])


class Run:
    """One execution while it runs."""

    def __init__(self, machine: Machine, host: hosting.Hosting, arn: str, task: Task) -> None:
        self.machine = machine
        self.host = host
        self.arn = arn
        self.task = task
        self.execution = machine.store.get(EXECUTION, arn)
        self.definition: Definition = definition.parse(self.execution["PipelineDefinition"])
        parallelism = self.execution.get("ParallelismConfiguration", {})
        self.most: int = parallelism.get("MaxParallelExecutionSteps", len(self.definition.steps))
        self.states: dict[str, str] = {}
        """Step -> Executing, Succeeded, Failed, Stopped or Skipped; not there: still waiting."""
        self.outcomes: dict[str, bool] = {}
        """Condition step -> what it came to."""
        self.properties: dict[str, Document] = {}
        self.reason = ""
        self.changed = threading.Condition()

    # --- deciding

    def run(self) -> None:
        """Until no step runs and none can start."""
        self.task.on_stop(self._wake)
        stopping = False
        with self.changed:
            while True:
                if self.task.stopping and not stopping:
                    stopping = True
                    self._set(PipelineExecutionStatus="Stopping")
                self._skip()
                if not stopping and "Failed" not in self.states.values():
                    running = list(self.states.values()).count("Executing")
                    for step in self._ready()[: max(0, self.most - running)]:
                        self.states[step.name] = "Executing"
                        self._note(step, StepStatus="Executing", StartTime=time.time(), AttemptCount=1, Metadata={})
                        threading.Thread(target=self._step, args=(step,), daemon=True).start()
                if "Executing" not in self.states.values():
                    break
                self.changed.wait()
        # A step that failed on its own counts as failure even if somebody asked to stop meanwhile.
        if "Failed" in self.states.values():
            self._set(PipelineExecutionStatus="Failed", FailureReason=(self.reason or ONE_FAILED)[:_LONGEST_REASON])
        elif stopping:
            self._set(
                PipelineExecutionStatus="Stopped", **({"FailureReason": self.task.reason} if self.task.reason else {})
            )
        else:
            self._set(PipelineExecutionStatus="Succeeded")

    def _ready(self) -> list[Step]:
        return [
            step
            for step in self.definition.steps.values()
            if step.name not in self.states
            and all(self.states.get(name) in ("Succeeded", _SKIPPED) for name in self.definition.needs(step.name))
        ]

    def _skip(self) -> None:
        """Steps in the branch not taken, and steps that need one of those, are not going to run."""
        changed = True
        while changed:
            changed = False
            for step in self.definition.steps.values():
                if step.name not in self.states and self._never(step):
                    self.states[step.name] = _SKIPPED
                    changed = True

    def _never(self, step: Step) -> bool:
        if step.branch:
            condition, side = step.branch
            outcome = self.outcomes.get(condition)
            if self.states.get(condition) == _SKIPPED or (outcome is not None and outcome != (side == "IfSteps")):
                return True
        needed = step.referred | set(step.depends_on)
        return any(self.states.get(name) == _SKIPPED for name in needed)

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _set(self, **fields: Any) -> None:
        self.machine.store.update(EXECUTION, self.arn, **fields)

    def _note(self, step: Step, **fields: Any) -> None:
        name = f"{self.arn}/{step.name}"
        if self.machine.store.find(STEP, name) is None:
            self.machine.store.create(STEP, name, {"StepName": step.name, **step.display, **fields}, parent=self.arn)
        else:
            self.machine.store.update(STEP, name, **fields)

    # --- doing

    def _step(self, step: Step) -> None:
        state, reason = "Failed", ""
        try:
            state, reason = self._execute(step)
        except (StepFailed, references.Unresolved, conditions.Incomparable, ServiceError) as error:
            reason = str(error)
        except Exception as error:
            log.exception("step %s of %s ended in a bug of the service", step.name, self.arn)
            reason = f"InternalServerError: {error!r}; see service.log"
        fields: Document = {"StepStatus": state, "EndTime": time.time()}
        if reason:
            fields["FailureReason"] = reason[:_LONGEST_REASON]
        self._note(step, **fields)
        with self.changed:
            self.states[step.name] = state
            self.changed.notify_all()

    def _execute(self, step: Step) -> tuple[str, str]:
        """Run one step; its status and failure reason."""
        arguments = self._scope().resolve(step.own_arguments)
        if step.type == "Condition":
            outcome = conditions.holds(arguments)
            self.outcomes[step.name] = outcome
            self._note(step, Metadata={"Condition": {"Outcome": "True" if outcome else "False"}})
            return "Succeeded", ""
        if step.type == "Fail":
            message = service_model.as_text(arguments["ErrorMessage"])
            self._note(step, Metadata={"Fail": {"ErrorMessage": message}})
            self.reason = message
            return "Failed", message
        operation, name = service_model.STEP_OPERATIONS[step.type]
        request = service_model.coerce(operation, arguments)
        if name and name not in request:
            request[name] = names.for_step(names.execution_id(self.arn), step.name, tuning=step.type == "Tuning")
        if wrong := service_model.validate(operation, request):
            raise StepFailed(f"ClientError: {operation}: {'; '.join(wrong)}")
        return self._kinds()[step.type](step, request)

    def _kinds(self) -> dict[str, Callable[[Step, Document], tuple[str, str]]]:
        return {
            "Processing": lambda step, request: self._job(step, request, processing, "ProcessingJob", "ProcessingJob"),
            "Training": lambda step, request: self._job(step, request, training, "TrainingJob", "TrainingJob"),
            "Tuning": lambda step, request: self._job(step, request, tuning, "HyperParameterTuningJob", "TuningJob"),
            "RegisterModel": self._register,
            "Model": self._model,
            "EndpointConfig": self._endpoint_config,
            "Endpoint": self._endpoint,
        }

    def _job(self, step: Step, request: Document, module: Any, label: str, shown: str) -> tuple[str, str]:
        if hit := self._reused(step, request):
            self.properties[step.name] = hit.job
            self._note(step, Metadata=hit.metadata, CacheHitResult={"SourcePipelineExecutionArn": hit.execution})
            return "Succeeded", ""
        name = request[f"{label}Name"]
        arn = module.create(self.machine, request)[f"{label}Arn"]
        self._note(step, Metadata={shown: {"Arn": arn}})
        job = self.machine.task(module.KIND, name)
        if job:
            self.task.on_stop(lambda: job.stop(self.task.reason))
            job.done.wait()
        document = self.properties[step.name] = self.machine.store.get(module.KIND, name)
        status = document[f"{label}Status"]
        if status == "Completed":
            self._note(step, Cache=caching.record(self.machine, step.type, request, document))
            return "Succeeded", ""
        if status == "Stopped" and self.task.stopping:
            return "Stopped", ""
        reason = document.get("FailureReason") or document.get("SecondaryStatus") or ""
        return "Failed", reason if status == "Failed" else f"ClientError: {arn} was stopped. {reason}".strip()

    def _reused(self, step: Step, request: Document) -> caching.Hit | None:
        """The earlier run that stands in for this one, if caching is on and there is one; the log says what it was."""
        if step.expire_after is None:
            return None
        executions = self.machine.store.list(EXECUTION, parent=self.execution["PipelineArn"])
        arns = [execution["PipelineExecutionArn"] for execution in reversed(executions)]
        noted = ((arn, self.machine.store.find(STEP, f"{arn}/{step.name}")) for arn in arns if arn != self.arn)
        earlier = sorted(
            ((arn, then) for arn, then in noted if then and "EndTime" in then),
            key=lambda item: item[1]["EndTime"],
            reverse=True,
        )
        hit, why = caching.find(self.machine, earlier, step.type, request, step.expire_after)
        log.info(
            "step %s of %s: %s", step.name, self.arn, f"cached, from {hit.execution}" if hit else f"not cached: {why}"
        )
        return hit

    def _register(self, step: Step, request: Document) -> tuple[str, str]:
        arn = registry.create_package(self.machine, request, make_group=True)["ModelPackageArn"]
        self._note(step, Metadata={"RegisterModel": {"Arn": arn}})
        self.properties[step.name] = registry.package(self.machine, arn)
        return "Succeeded", ""

    def _model(self, step: Step, request: Document) -> tuple[str, str]:
        arn = registry.create_model(self.machine, request)["ModelArn"]
        self._note(step, Metadata={"Model": {"Arn": arn}})
        self.properties[step.name] = registry.model(self.machine, request["ModelName"])
        return "Succeeded", ""

    def _endpoint_config(self, step: Step, request: Document) -> tuple[str, str]:
        arn = self.host.create_config(request)["EndpointConfigArn"]
        self._note(step, Metadata={"EndpointConfig": {"Arn": arn}})
        self.properties[step.name] = self.host.config(request["EndpointConfigName"])
        return "Succeeded", ""

    def _endpoint(self, step: Step, request: Document) -> tuple[str, str]:
        """Create the endpoint, or point it at the new configuration if there is one of that name."""
        name = request["EndpointName"]
        self.host.wait(name)  # a deployment of someone else's, or the service's own after a restart
        if self.host.exists(name):
            arn = self.host.update({key: value for key, value in request.items() if key != "Tags"})["EndpointArn"]
        else:
            arn = self.host.create(request)["EndpointArn"]
        self._note(step, Metadata={"Endpoint": {"Arn": arn}})
        self.host.wait(name)
        document = self.properties[step.name] = self.host.endpoint(name)
        if (
            document["EndpointStatus"] == "InService"
            and document["EndpointConfigName"] == request["EndpointConfigName"]
        ):
            return "Succeeded", ""
        return "Failed", document.get("FailureReason", f"{arn} is {document['EndpointStatus']}")

    def _scope(self) -> references.Scope:
        execution = self.execution
        begun = datetime.fromtimestamp(execution["CreationTime"], UTC)
        return references.Scope(
            parameters=execution["ParameterValues"],
            execution={
                "PipelineName": execution["PipelineName"],
                "PipelineArn": execution["PipelineArn"],
                "PipelineExecutionId": names.execution_id(self.arn),
                "PipelineExecutionArn": self.arn,
                "StartDateTime": begun.isoformat(timespec="milliseconds"),
                "CurrentDateTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
            },
            properties=lambda name: self.properties[name],
            property_file=self._property_file,
            read=self.machine.objects.read,
        )

    def _property_file(self, step: str, name: str) -> str:
        output, path = self.definition.steps[step].property_files[name]
        for item in self.properties[step].get("ProcessingOutputConfig", {}).get("Outputs", []):
            if item["OutputName"] == output:
                return f"{item['S3Output']['S3Uri'].rstrip('/')}/{path}"
        raise references.Unresolved(f"Property file {name}: step {step} has no output {output!r}")
