"""The end of a run: what came out, for people and for machines."""

from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines import terminal
from pipelines.errors import ExecutionFailed
from pipelines.execution import Execution, Step
from pipelines.predict import Prediction, ask

LAST_LINES = 20  # of the log of a step that failed


def collect(execution: Execution, status: str, reason: str, steps: list[Step]) -> dict[str, Any]:
    """Everything, as one object; a deployed endpoint is asked about a photo of the test side."""
    result: dict[str, Any] = {
        "execution_arn": execution.arn,
        "status": status,
        "failure_reason": reason or None,
        "steps": [step.to_json() for step in steps],
        **execution.results(steps),
        "prediction": None,
        "outputs": execution.outputs,
    }
    if execution.place.local:
        result["outputs_folder"] = str(local_folder(result["outputs"]))
    if result["endpoint_name"] and (photo := execution.test_photo(steps)):
        result["prediction"] = ask(execution.place, result["endpoint_name"], *photo).to_json()
    failed = [step for step in steps if step.status == "Failed"]
    if failed:
        result["failed_steps"] = [
            {"name": step.name, "failure_reason": step.reason, "log": _tail(execution, step)} for step in failed
        ]
    return result


def local_folder(uri: str) -> Any:
    """Where the local service keeps an object or a prefix."""
    from pipelines.place import state_dir

    return state_dir() / "s3" / uri.removeprefix("s3://")


def _tail(execution: Execution, step: Step) -> list[str]:
    return execution.tail(*step.job, LAST_LINES) if step.job else []


def show(result: dict[str, Any]) -> None:
    """Print it for people."""
    console = terminal.out()
    if result["trials"]:
        console.print()
        terminal.print_table(console, _trials(result))
    facts: list[tuple[str, str]] = []
    if result["best_hyperparameters"]:
        facts.append(("best hyperparameters", _pairs(result["best_hyperparameters"])))
    if result["test_loss"] is not None:
        facts.append(("test loss", f"{result['test_loss']:.4f}"))
        note = "  (the backbone started from random weights)" if result["random_weights"] else ""
        facts.append(("test accuracy", f"{result['accuracy']:.2%}{note}"))
    if result["gate"]:
        sign = "<=" if result["gate"] == "passed" else ">"
        figures = f"test loss {result['test_loss']:.4f} {sign} TestLossThreshold {result['test_loss_threshold']:g}"
        facts.append(("gate", f"{result['gate']}: {figures}"))
    if result["model_package_arn"]:
        facts.append(("model package", f"{result['model_package_arn']} ({result['approval_status']})"))
    if result["endpoint_name"]:
        facts.append(("endpoint", result["endpoint_name"]))
    if result["prediction"]:
        facts.append(("one prediction", Prediction.from_json(result["prediction"]).line()))
    reused: dict[str, list[str]] = {}
    for step in result["steps"]:
        if "reused_from" in step:
            reused.setdefault(step["reused_from"].rsplit("/", 1)[1], []).append(step["name"])
    facts += [("reused", f"{', '.join(names)}: as execution {source} left them") for source, names in reused.items()]
    facts.append(("outputs", result.get("outputs_folder", result["outputs"])))
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in facts:
        grid.add_row(Text(name, "bold"), Text(value, overflow="fold"))
    terminal.print_table(console, grid)
    if result["status"] == "Succeeded" and not result["endpoint_name"] and result["model_package_arn"]:
        console.print(f"\nNot deployed: ApprovalStatus is {result['approval_status']}, and Approved deploys.")
    if result["endpoint_name"] and "outputs_folder" in result:
        console.print(
            "\nThe endpoint goes on answering: ask it with `run.py --local predict PHOTO`, or stop SageMaker on this"
        )
        console.print("machine with `run.py --local down`.")


def failure(result: dict[str, Any]) -> ExecutionFailed:
    """Which step failed and why, as an error; the end of its log goes to stderr."""
    console = terminal.err()
    for step in result.get("failed_steps", []):
        if step["log"]:
            console.print(f"\nthe end of {step['name']}'s log:", style="bold")
            for line in step["log"]:
                console.print(Text(f"  {line}"))
    console.print()
    failed = [f"step {step['name']} failed: {step['failure_reason']}" for step in result.get("failed_steps", [])]
    ended = f"the execution ended as {result['status']}" + (
        f": {reason}" if (reason := result["failure_reason"]) else ""
    )
    return ExecutionFailed("\n".join(failed) or ended)


def _trials(result: dict[str, Any]) -> Table:
    trials = result["trials"]
    names = sorted({name for trial in trials for name in trial["hyperparameters"]})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("trial", *names, result["objective"], ""):
        table.add_column(title, justify="right" if title else "left")
    for number, trial in enumerate(trials, 1):
        values = [f"{trial['hyperparameters'].get(name, ''):.4g}" for name in names]
        objective = "" if trial["objective"] is None else f"{trial['objective']:.4f}"
        best = trial["hyperparameters"] == result["best_hyperparameters"]
        stopped_early = trial["status"] == "Stopped" and trial["objective"] is not None
        state = "stopped early" if stopped_early else "" if trial["status"] == "Completed" else trial["status"]
        remark = ", ".join(filter(None, ("best" if best else "", state)))
        table.add_row(str(number), *values, objective, Text(remark, "bold green" if best else "dim"))
    return table


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
