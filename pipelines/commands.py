"""What each verb of the command line does. `run.py` imports this once it knows that there is something to do."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from pipelines import place as places
from pipelines import settings as knobs
from pipelines import staging, terminal
from pipelines.errors import UserError, is_missing
from pipelines.execution import ENDED, Execution, latest, no_pipeline
from pipelines.place import Place
from pipelines.settings import PARAMETERS, Settings


def definition(options: argparse.Namespace) -> int:
    """Print the definition: no credentials, no network."""
    from pipelines import pipeline

    plan = staging.plan(_settings(options))
    print(json.dumps(json.loads(pipeline.definition(plan.settings, plan.code.uri)), indent=1))
    return 0


def upsert(options: argparse.Namespace) -> int:
    """Stage code, weights and data; create or update the pipeline."""
    result = _upsert(_place(options))
    if options.json:
        terminal.print_json(result)
    else:
        verb = "created" if result["created"] else "updated"
        terminal.out().print(
            f"{verb} {result['pipeline_arn']}\nInputData {result['data']}\nWeights   {result['weights']}"
        )
    return 0


def start(options: argparse.Namespace) -> int:
    """Start an execution of a pipeline that was upserted."""
    place = _place(options)
    execution = _start(place, options)
    if options.wait:
        return _watch(execution, options.json)
    if options.json:
        terminal.print_json({"execution_arn": execution.arn})
    else:
        local = " --local" if place.local else ""
        terminal.out().print(f"started {execution.arn}\nfollow it with: run.py{local} status {execution.id}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Upsert, start, watch."""
    place = _place(options)
    given = _given(options.parameter)
    _upsert(place, given)
    return _watch(_start(place, options), options.json)


def status(options: argparse.Namespace) -> int:
    """The steps of an execution, as they are now."""
    execution = _execution(options)
    state = execution.describe()
    steps = execution.steps()
    now = state["PipelineExecutionStatus"]
    if options.json:
        reason = state.get("FailureReason")
        rows = [step.to_json() for step in steps]
        terminal.print_json(
            {"execution_arn": execution.arn, "status": now, "failure_reason": reason, "steps": rows,
             **execution.results(steps)}
        )  # fmt: skip
    else:
        console = terminal.out()
        console.print(f"{execution.arn}: {now}")
        terminal.print_table(console, terminal.table_of(steps, now in ENDED))
        if state.get("FailureReason"):
            console.print(state["FailureReason"])
    return 0


def list_executions(options: argparse.Namespace) -> int:
    """The executions of a pipeline; locally and without --config, of all of them."""
    place = _place(options)
    sagemaker = place.client("sagemaker")
    names = [_pipeline_name(place, options)]
    if names == [None]:
        pages = sagemaker.get_paginator("list_pipelines").paginate()
        names = [each["PipelineName"] for page in pages for each in page["PipelineSummaries"]]
    rows = []
    for name in filter(None, names):
        try:
            found = sagemaker.list_pipeline_executions(PipelineName=name, SortOrder="Descending", MaxResults=50)
        except ClientError as error:
            raise no_pipeline(name, error) from None
        for each in found["PipelineExecutionSummaries"]:
            arn = each["PipelineExecutionArn"]
            shown = {"pipeline": name, "execution": arn.rsplit("/", 1)[1], "status": each["PipelineExecutionStatus"]}
            rows.append({**shown, "started": each["StartTime"].astimezone().isoformat(timespec="seconds"),
                         "execution_arn": arn})  # fmt: skip
    rows.sort(key=lambda row: row["started"], reverse=True)
    if options.json:
        terminal.print_json({"executions": rows})
    else:
        width = max((len(row["pipeline"]) for row in rows), default=0)
        for row in rows:
            line = f"{row['pipeline']:<{width}}  {row['execution']}  {row['status']:<10}  {row['started']}"
            terminal.out().print(line)
        if not rows:
            terminal.out().print("no executions yet")
    return 0


def logs(options: argparse.Namespace) -> int:
    """The log of a step's job; of a tuning step, those of all its trials."""
    execution = _execution(options)
    steps = {step.name.lower(): step for step in execution.steps(figures=False)}
    step = steps.get(options.step.lower())
    if step is None:
        names = ", ".join(each.name for each in steps.values())
        raise UserError(f"execution {execution.id} has no step {options.step}: expected one of {names}")
    if step.job is None:
        state = "has not run" if step.status == "Waiting" else "runs no job of its own"
        raise UserError(f"step {step.name} {state}, so there is no log" + (f": {step.reason}" if step.reason else ""))
    streams = execution.streams(*step.job)
    if options.json:
        logged = [{"stream": stream, "lines": list(execution.log(group, stream))} for group, stream in streams]
        terminal.print_json({"step": step.name, "streams": logged})
        return 0
    for group, stream in streams:
        if len(streams) > 1:
            print(f"==> {stream} <==")
        for line in execution.log(group, stream):
            print(line)
    return 0


def stop(options: argparse.Namespace) -> int:
    """Stop an execution and its jobs."""
    execution = _execution(options)
    state = execution.describe()["PipelineExecutionStatus"]
    if state in ENDED:
        raise UserError(f"execution {execution.id} has ended already: {state}")
    execution.place.client("sagemaker").stop_pipeline_execution(PipelineExecutionArn=execution.arn)
    if options.json:
        terminal.print_json({"execution_arn": execution.arn, "status": "Stopping"})
    else:
        terminal.out().print(f"stopping {execution.arn}")
    return 0


def predict(options: argparse.Namespace) -> int:
    """Ask the endpoint about photos."""
    from pipelines import predict as asking

    place = _place(options)
    settings = place.settings
    configured = options.endpoint or (settings.endpoint_name or settings.name if options.config else None)
    if configured is None and not place.local:
        configured = settings.endpoint_name or settings.name
    endpoint = asking.endpoint_of(place, configured)
    answers, errors = [], []
    for image in options.images:
        try:
            answers.append(asking.ask(place, endpoint, image, asking.read(image)))
        except UserError as error:
            errors.append(str(error))
            continue
        if not options.json:
            terminal.out().print(answers[-1].line())
    if options.json:
        terminal.print_json({"endpoint_name": endpoint, "predictions": [each.to_json() for each in answers]})
    if errors:
        raise UserError("\n".join(errors))
    return 0


def upload(options: argparse.Namespace) -> int:
    """Bring a folder of photos to a prefix named after its content."""
    if options.directory.startswith("s3://"):
        raise UserError(f"{options.directory} is in S3 already: give it as --data or InputData")
    place = _place(options)
    photos = staging.locate_data(place.settings, options.directory)
    _stage(place, photos)
    if options.json:
        terminal.print_json({"uri": photos.uri, "files": len(photos.sources)})
    else:
        terminal.out().print(photos.uri)
    return 0


def sample(options: argparse.Namespace) -> int:
    """Write the sample dataset."""
    from pipelines import sample as digits

    target = Path(options.directory).expanduser()
    if target.exists() and not target.is_dir():
        raise UserError(f"{options.directory} is a file: expected a folder to write the sample dataset to")
    try:
        photos = digits.write(target)
    except OSError as error:
        raise UserError(f"the sample dataset cannot be written to {target}: {error.strerror or error}") from None
    if options.json:
        terminal.print_json({"directory": str(target), "photos": photos})
    else:
        terminal.out().print(f"{photos} photos of handwritten digits in {target}, one folder a class")
    return 0


def down(options: argparse.Namespace) -> int:
    """Stop SageMaker on this machine; everything it keeps stays."""
    from pipelines.local import service

    stopped = service.stop(places.state_dir())
    if options.json:
        terminal.print_json({"stopped": stopped, "state": str(places.state_dir())})
    else:
        what = "stopped" if stopped else "was not running"
        terminal.out().print(f"SageMaker on this machine {what}; what it keeps is in {places.state_dir()}")
    return 0


# --- what the verbs share


def _settings(options: argparse.Namespace) -> Settings:
    overrides: dict[str, Any] = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected field=value, e.g. --set epochs=30")
        overrides[name.strip()] = value
    for name in ("data", "weights"):
        if getattr(options, name, None) is not None:
            overrides[name] = getattr(options, name)
    return knobs.load(Path(options.config) if options.config else None, overrides)


def _place(options: argparse.Namespace) -> Place:
    settings = _settings(options)
    return places.local(settings) if options.local else places.aws(settings)


def _pipeline_name(place: Place, options: argparse.Namespace) -> str | None:
    """The pipeline the settings name; None locally and without a config: whichever was used last."""
    named = options.config or not place.local or "name" in place.settings.model_fields_set
    return place.settings.name if named else None


def _execution(options: argparse.Namespace) -> Execution:
    """The one named on the command line, by ARN or id, or the newest."""
    place = _place(options)
    wanted = getattr(options, "execution", None)
    if wanted is None:
        return Execution(place, latest(place, _pipeline_name(place, options)))
    sagemaker = place.client("sagemaker")
    if wanted.startswith("arn:"):
        arns = [wanted]
    else:
        name = _pipeline_name(place, options)
        pages = sagemaker.get_paginator("list_pipelines").paginate()
        names = [name] if name else [each["PipelineName"] for page in pages for each in page["PipelineSummaries"]]
        base = f"arn:{place.settings.partition}:sagemaker:{place.settings.region}:{place.settings.account}:pipeline"
        arns = [f"{base}/{each}/execution/{wanted}" for each in names]
    for arn in arns:
        try:
            sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        except ClientError as error:
            if not is_missing(error):
                raise
            continue
        return Execution(place, arn)
    raise UserError(f"there is no execution {wanted}; `list` shows those there are")


def _upsert(place: Place, given: dict[str, str] | None = None) -> dict[str, Any]:
    """Stage what is missing, then CreatePipeline or UpdatePipeline.

    Args:
        place: where.
        given: parameters of the execution that follows; what they replace need not be staged.
    """
    from pipelines import pipeline

    plan = staging.plan(place.settings)

    text = pipeline.definition(plan.settings, plan.code.uri)
    replaced = {"Weights": plan.weights, "InputData": plan.photos}
    _stage(place, plan.code, *(staged for name, staged in replaced.items() if name not in (given or {})))
    sagemaker = place.client("sagemaker")
    request = {"PipelineName": plan.settings.name, "PipelineDefinition": text, "RoleArn": plan.settings.role_arn}
    created = True
    try:
        arn = sagemaker.create_pipeline(**request)["PipelineArn"]
    except ClientError as error:
        if "already exists" not in str(error):
            raise
        arn, created = sagemaker.update_pipeline(**request)["PipelineArn"], False
    uris = {"code": plan.code.uri, "data": plan.settings.data, "weights": plan.settings.weights}
    return {"pipeline_arn": arn, "created": created, **uris}


def _stage(place: Place, *staged: staging.Staged) -> None:
    """Upload what is missing."""
    if not any(each.sources for each in staged):
        return
    place.ensure_bucket()
    s3 = place.client("s3")
    with terminal.uploads() as tell:
        for each in staged:
            each.upload(s3, tell)


def _given(texts: list[str]) -> dict[str, str]:
    """`-p Name=Value …` as a mapping.

    Raises:
        UserError: not of that form, twice, or no parameter of the pipeline.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"-p {text}: expected Name=Value, e.g. -p Epochs=30")
        if name not in PARAMETERS:
            raise UserError(f"-p {text}: there is no parameter {name}; there are: {', '.join(PARAMETERS)}")
        if name in given:
            raise UserError(f"-p {text}: {name} is given twice")
        knobs.check(PARAMETERS[name], value, f"-p {name}")
        given[name] = value
    return given


def _start(place: Place, options: argparse.Namespace) -> Execution:
    """Check the parameters, stage local files among them, and start.

    Raises:
        UserError: a parameter the pipeline does not have, or of a wrong type; no pipeline; no photos.
    """
    from pipelines.local.definition import Invalid, parse

    sagemaker, settings = place.client("sagemaker"), place.settings
    given = _given(options.parameter)
    try:
        text = sagemaker.describe_pipeline(PipelineName=settings.name)["PipelineDefinition"]
    except ClientError as error:
        raise no_pipeline(settings.name, error) from None
    try:
        parse(text).values([{"Name": name, "Value": value} for name, value in given.items()])
    except Invalid as error:
        raise UserError(f"-p: {error}") from None
    for name, locate in (("InputData", staging.locate_data), ("Weights", staging.locate_weights)):
        if name in given:
            staged = locate(settings, given[name])
            _stage(place, staged)
            given[name] = staged.uri
    declared = {each["Name"]: each.get("DefaultValue") for each in json.loads(text)["Parameters"]}
    _check_there(place, {**declared, **given})
    answer = sagemaker.start_pipeline_execution(
        PipelineName=settings.name,
        PipelineParameters=[{"Name": name, "Value": value} for name, value in given.items()],
    )
    return Execution(place, answer["PipelineExecutionArn"])


def _check_there(place: Place, parameters: dict[str, Any]) -> None:
    """Refuse to start what cannot go further than its first step."""
    s3 = place.client("s3")
    ways = {
        "InputData": "give photos with --data DIR (or `upload DIR` and -p InputData=URI)",
        "Weights": "give --weights NAME_OR_FILE to `upsert` or `run`, which stage them",
    }
    for name, way in ways.items():
        uri = parameters.get(name)
        if uri is None:  # somebody else's pipeline of that name: it knows what it needs
            continue
        bucket, prefix = staging.split_uri(uri)
        try:
            found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount", 0)
        except s3.exceptions.NoSuchBucket:
            found = 0
        if not found:
            raise UserError(f"{name} {uri} holds nothing: {way}")


def _watch(execution: Execution, as_json: bool) -> int:
    """Watch to the end, then say what came out."""
    from pipelines import summary
    from pipelines.watch import watch

    terminal.err().print(f"execution {execution.arn}")
    try:
        state, reason, steps = watch(execution)
    except KeyboardInterrupt:
        local = " --local" if execution.place.local else ""
        print(f"\nno longer watching; it goes on: run.py{local} status|stop {execution.id}", file=sys.stderr)
        return 130
    result = summary.collect(execution, state, reason, steps)
    if as_json:
        terminal.print_json(result)
    else:
        summary.show(result)
    if state != "Succeeded":
        raise summary.failure(result)
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "definition": definition,
    "upsert": upsert,
    "start": start,
    "run": run,
    "status": status,
    "list": list_executions,
    "logs": logs,
    "stop": stop,
    "predict": predict,
    "upload": upload,
    "sample": sample,
    "down": down,
}
