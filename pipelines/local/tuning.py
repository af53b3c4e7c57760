"""Tuning jobs: Optuna suggests, training jobs try, the objective is read from their logs.

The strategies are Optuna's: Random is its RandomSampler, Bayesian its TPESampler. Grid runs every combination of
categorical values once, as SageMaker's does. Where the space is finite no combination is tried twice.

Trials that are not promising are ended early where that is asked for: Hyperband is Optuna's HyperbandPruner over random
search, `TrainingJobEarlyStoppingType: Auto` its MedianPruner, close to the rule SageMaker documents ("Stop Training
Jobs Early": worse than the median of the trials before). Each value of the objective in a trial's log is one unit of
resource, so a script prints it once an epoch. A trial ended so is Stopped, and the last value it printed is its
objective, as on AWS.
"""

import hashlib
import itertools
import json
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.local import training
from pipelines.local.errors import JobError, ServiceError, in_use, invalid
from pipelines.local.machine import Machine, Task
from pipelines.local.names import arn
from pipelines.local.store import Document, Exists

log = logging.getLogger(__name__)

KIND = "hyper-parameter-tuning-job"
_MOST_RESOURCE = 20_000  # units of resource Hyperband can be told of: AWS' limit
_EPOCHS = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")  # static hyperparameters that tell MaxResource
_BEFORE_MEDIAN = 5  # trials to complete before others are compared with them: Optuna's default; fewer if there are few
_STARTUP = 10  # trials TPE draws at random before it models anything: Optuna's default; fewer when there are few
_DECADES = 100.0  # a positive range that spans more than this factor is searched on a logarithmic scale by "Auto"
_INHERITED = (  # from the training job definition, as it is
    "AlgorithmSpecification InputDataConfig OutputDataConfig RoleArn StoppingCondition CheckpointConfig"
    " EnableManagedSpotTraining Environment EnableNetworkIsolation"
)
_ENDED = ("Completed", "Failed", "Stopped")
NO_OBJECTIVE = (
    "ClientError: No objective metrics found after running this training job. Please ensure that the custom algorithm"
    " is emitting the objective metric as defined by the regular expression provided."
)


def create(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """CreateHyperParameterTuningJob: check what botocore's model can not say, note the job and start it.

    Raises:
        ServiceError: ValidationException for a strategy, range or option that can not be run.
    """
    _check(request)
    name = request["HyperParameterTuningJobName"]
    job_arn = arn(KIND, name)
    document = {
        **request,
        "HyperParameterTuningJobArn": job_arn,
        "HyperParameterTuningJobStatus": "InProgress",
        **_counters([]),
    }
    try:
        machine.store.create(KIND, name, document)
    except Exists:
        raise in_use(f"Hyperparameter tuning job names must be unique: {job_arn} exists already") from None
    machine.start(KIND, name, lambda task: _run(machine, task))
    return {"HyperParameterTuningJobArn": job_arn}


# --- the search space


@dataclass(frozen=True)
class Range:
    """One hyperparameter to tune: bounds for numbers, or the values to choose from."""

    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    scaling: str = "Linear"

    def suggest(self, trial: Any) -> str:
        """A value from an Optuna trial, as the text a training job gets."""
        if self.values:
            return str(trial.suggest_categorical(self.name, self.values))
        logarithmic = self.scaling == "Logarithmic"
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=logarithmic))
        if self.scaling == "ReverseLogarithmic":  # fine steps near 1: logarithmic in 1 - x
            return repr(1.0 - trial.suggest_float(self.name, 1.0 - self.high, 1.0 - self.low, log=True))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=logarithmic))

    @property
    def choices(self) -> list[str] | None:
        """All values, where they can be counted."""
        if self.values:
            return list(self.values)
        return [str(value) for value in range(int(self.low), int(self.high) + 1)] if self.whole else None


def ranges(parameter_ranges: dict[str, Any]) -> list[Range]:
    """The API's ParameterRanges.

    Raises:
        ServiceError: ValidationException naming the range and what is wrong with it.
    """
    found = [
        Range(item["Name"], values=tuple(item["Values"]))
        for item in parameter_ranges.get("CategoricalParameterRanges", [])
    ]
    for key, whole in (("ContinuousParameterRanges", False), ("IntegerParameterRanges", True)):
        for item in parameter_ranges.get(key, []):
            found.append(_numeric(item, whole))
    names = [item.name for item in found]
    if len(set(names)) != len(names):
        raise invalid(f"Hyperparameter names must be unique, and these are not: {sorted(names)}")
    if not found:
        raise invalid("ParameterRanges holds nothing to tune")
    return found


def _numeric(item: dict[str, str], whole: bool) -> Range:
    name, scaling = item["Name"], item.get("ScalingType", "Auto")
    try:
        low, high = float(item["MinValue"]), float(item["MaxValue"])
    except ValueError:
        raise invalid(
            f"{name}: MinValue {item['MinValue']!r} and MaxValue {item['MaxValue']!r} must be numbers"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise invalid(f"{name}: MinValue {low:g} must not be above MaxValue {high:g}")
    if whole and not (low.is_integer() and high.is_integer()):
        raise invalid(f"{name}: an integer range needs whole numbers, not {low:g} to {high:g}")
    if scaling == "Auto":
        scaling = "Logarithmic" if low > 0 and high / low > _DECADES else "Linear"
    if scaling == "Logarithmic" and low <= 0:
        raise invalid(f"{name}: logarithmic scaling needs MinValue above 0, not {low:g}")
    if scaling == "ReverseLogarithmic" and (whole or low < 0 or high >= 1):
        raise invalid(
            f"{name}: ReverseLogarithmic scaling is for continuous ranges within 0 <= x < 1, not {low:g} to {high:g}"
        )
    return Range(name, low=low, high=high, whole=whole, scaling=scaling)


def _check(request: dict[str, Any]) -> None:
    config = request["HyperParameterTuningJobConfig"]
    for name in ("TrainingJobDefinitions", "WarmStartConfig", "Autotune"):
        if name in request:
            raise invalid(f"{name} is not supported on this machine")
    definition = request.get("TrainingJobDefinition")
    if definition is None:
        raise invalid("TrainingJobDefinition is required")
    _check_strategy(config, definition)
    objective = config.get("HyperParameterTuningJobObjective")
    metrics = [item["Name"] for item in definition["AlgorithmSpecification"].get("MetricDefinitions", [])]
    if objective is None or objective["MetricName"] not in metrics:
        raise invalid(
            "A metric is required for this hyperparameter tuning job objective. Provide a metric in the metric"
            f" definitions. The objective is {objective and objective['MetricName']!r}, the definitions hold {metrics}."
        )
    space = ranges(config.get("ParameterRanges", {}))
    most = config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    if config["Strategy"] == "Grid":
        if any(not item.values for item in space):
            raise invalid("The Grid strategy takes categorical ranges only")
        combinations = math.prod(len(item.values) for item in space)
        if most is not None and most != combinations:
            raise invalid(f"The grid has {combinations} combinations: MaxNumberOfTrainingJobs is {most}; leave it out")
    elif most is None:
        raise invalid(f"MaxNumberOfTrainingJobs is required for the strategy {config['Strategy']}")
    static = set(definition.get("StaticHyperParameters", {}))
    if both := sorted(static & {item.name for item in space}):
        raise invalid(f"These hyperparameters are both static and tuned: {both}")


def _check_strategy(config: Document, definition: Document) -> None:
    if definition.get("ResourceConfig", {}).get("InstanceCount", 1) != 1:
        raise invalid(
            "InstanceCount of a TrainingJobDefinition must be 1 on this machine: a trial runs on one instance"
        )
    if config["Strategy"] == "Hyperband":
        if config.get("TrainingJobEarlyStoppingType", "Off") != "Off":
            raise invalid(
                "TrainingJobEarlyStoppingType must be Off for the strategy Hyperband, which stops training jobs itself"
            )
        resources(config, definition.get("StaticHyperParameters", {}))
    elif "StrategyConfig" in config:
        raise invalid(f"StrategyConfig is for the strategy Hyperband only, not for {config['Strategy']}")


def resources(config: Document, static: dict[str, str]) -> tuple[int, int]:
    """Hyperband's MinResource (1 if it is not given) and MaxResource (else the number of epochs).

    Args:
        config: HyperParameterTuningJobConfig.
        static: StaticHyperParameters, in which SageMaker looks for the number of epochs too.

    Raises:
        ServiceError: ValidationException when they can not be had, or make no sense.
    """
    hyperband = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {})
    least, most = hyperband.get("MinResource", 1), hyperband.get("MaxResource")
    if most is None:
        texts = [static[name].strip('\\"') for name in _EPOCHS if name in static]
        most = next((int(text) for text in texts if text.isdecimal()), None)
    if most is None:
        raise invalid(
            "Hyperband needs MaxResource in HyperbandStrategyConfig, or the number of epochs as one of the static"
            f" hyperparameters {', '.join(_EPOCHS)}"
        )
    if not 1 <= least <= most <= _MOST_RESOURCE:
        raise invalid(
            f"Hyperband needs 1 <= MinResource <= MaxResource <= {_MOST_RESOURCE}: they are {least} and {most}"
        )
    return least, most


# --- what to try next


class Search:
    """Asks Optuna for trials and tells it their objectives. Safe to use from several threads.

    Args:
        strategy: Bayesian, Random, Grid or Hyperband.
        space: what to tune.
        most: trials there will be.
        minimize: whether a low objective is a good one.
        seed: of the sampler; the same seed gives the same trials.
        early: whether to end trials early that are worse than the median.
        hyperband: MinResource and MaxResource, for Hyperband.
    """

    def __init__(
        self,
        strategy: str,
        space: list[Range],
        most: int,
        minimize: bool,
        seed: int,
        early: bool = False,
        hyperband: tuple[int, int] = (1, 1),
    ) -> None:
        import optuna  # 0.5 s and 60 MB, which a service that never tunes does not pay

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler: Any
        if strategy == "Bayesian":
            startup = min(_STARTUP, max(2, most // 3))
            # constant_liar: trials that still run repel new ones, so parallel trials spread out.
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        pruner: Any = optuna.pruners.NopPruner()
        self._longest = math.inf
        if strategy == "Hyperband":
            least, self._longest = hyperband
            pruner = optuna.pruners.HyperbandPruner(min_resource=least, max_resource=hyperband[1])
        elif early:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=min(_BEFORE_MEDIAN, max(2, most // 3)))
        self._study = optuna.create_study(
            study_name=str(seed),  # Hyperband deals trials out to its brackets by this name and their number
            direction="minimize" if minimize else "maximize",
            sampler=sampler,
            pruner=pruner,
        )
        self._failed, self._pruned = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED
        self._used: dict[int, int] = {}
        """Trial's number -> units of resource it has used."""
        self._lock = threading.RLock()
        self._space = space
        choices = [item.choices for item in space]
        self._untried: list[tuple[str, ...]] | None = None
        finite = math.prod(len(item) for item in choices if item is not None)
        if all(item is not None for item in choices) and (strategy == "Grid" or finite <= 10_000):
            self._untried = list(itertools.product(*(item for item in choices if item is not None)))
            if strategy != "Grid":
                random.Random(seed).shuffle(self._untried)  # noqa: S311 - order of a search, no secret
        self._grid = strategy == "Grid"

    def ask(self) -> tuple[Any, dict[str, str]] | None:
        """The next trial and its hyperparameters; None when every combination has been tried."""
        with self._lock:
            return self._ask()

    def _ask(self) -> tuple[Any, dict[str, str]] | None:
        if self._untried == []:
            return None
        if not self._grid:
            trial, values = self._suggest()
            if self._untried is None or tuple(values.values()) in self._untried:
                return trial, self._took(values)
            self._study.tell(trial, state=self._failed)  # a repetition: not tried again
        assert self._untried is not None
        following = self._untried[0]
        self._study.enqueue_trial(
            {item.name: int(v) if item.whole else v for item, v in zip(self._space, following, strict=True)}
        )
        trial, values = self._suggest()
        return trial, self._took(values)

    def _suggest(self) -> tuple[Any, dict[str, str]]:
        trial = self._study.ask()
        return trial, {item.name: item.suggest(trial) for item in self._space}

    def _took(self, values: dict[str, str]) -> dict[str, str]:
        if self._untried is not None:
            self._untried.remove(tuple(values.values()))
        return values

    def report(self, trial: Any, objective: float) -> bool:
        """Note that a trial has used one more unit of resource; whether it is to end now.

        A trial is ended once it goes beyond MaxResource, not when it has reached it: one that uses exactly that is
        about to save its model and end by itself.
        """
        with self._lock:
            used = self._used[trial.number] = self._used.get(trial.number, 0) + 1
            if used > self._longest:
                return True
            trial.report(objective, used)
            return bool(trial.should_prune())

    def tell(self, trial: Any, objective: float | None, early: bool = False) -> None:
        """How a trial went: its objective, or None if it has none; and whether it was ended early."""
        with self._lock:
            if objective is None:
                self._study.tell(trial, state=self._failed)
            elif early:
                self._study.tell(trial, state=self._pruned)  # its last report counts
            else:
                self._study.tell(trial, objective)


# --- the job


def _run(machine: Machine, task: Task) -> None:
    status, reason = "Failed", ""
    try:
        status, reason = _work(machine, task)
    except (JobError, ServiceError) as error:
        reason = f"ClientError: {error}"
    except ImportError as error:
        reason = f"ClientError: tuning needs optuna, which is not installed here ({error})"
    except Exception as error:
        reason = f"InternalServerError: {error!r}; see service.log"
        raise
    finally:
        fields: Document = {"HyperParameterTuningJobStatus": status, "HyperParameterTuningEndTime": time.time()}
        if reason:
            fields["FailureReason"] = reason[:1024]
        machine.store.update(KIND, task.name, **fields)


def _work(machine: Machine, task: Task) -> tuple[str, str]:
    job = machine.store.get(KIND, task.name)
    config = job["HyperParameterTuningJobConfig"]
    objective = config["HyperParameterTuningJobObjective"]
    space = ranges(config["ParameterRanges"])
    limits = config["ResourceLimits"]
    most = limits.get("MaxNumberOfTrainingJobs") or math.prod(len(item.values) for item in space)
    deadline = time.monotonic() + limits.get("MaxRuntimeInSeconds", math.inf)
    # Without a RandomSeed AWS draws one; here the same settings give the same trials.
    seed = config.get(
        "RandomSeed", int(hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8], 16)
    )
    search = Search(
        config["Strategy"],
        space,
        most,
        objective["Type"] == "Minimize",
        seed % 2**32,
        early=config.get("TrainingJobEarlyStoppingType") == "Auto",
        hyperband=resources(config, job["TrainingJobDefinition"].get("StaticHyperParameters", {}))
        if config["Strategy"] == "Hyperband"
        else (1, 1),
    )
    early: set[str] = set()
    """Trials that were told to end early."""

    def follow(name: str, trial: Any) -> training.Observer:
        def observe(metric: str, value: float) -> None:
            if metric == objective["MetricName"] and search.report(trial, value):
                running_job = machine.task(training.KIND, name)
                if running_job and not running_job.stopping:
                    early.add(name)
                    running_job.stop()

        return observe

    changed = threading.Condition()
    task.on_stop(lambda: _notify(changed))
    running: dict[str, Any] = {}
    left = most
    while True:
        while left and not task.stopping and len(running) < limits["MaxParallelTrainingJobs"]:
            asked = search.ask()
            if asked is None:
                left = 0
                break
            trial, values = asked
            name = f"{task.name}-{most - left + 1:03d}-{secrets.token_hex(4)}"
            left -= 1
            running[name] = trial
            _start_trial(machine, job, name, values, follow(name, trial), lambda: _notify(changed))
            publish(machine, task.name)
        if not running:
            break
        with changed:
            changed.wait_for(
                lambda: task.stopping or any(machine.task(training.KIND, name) is None for name in running),
                timeout=None if deadline == math.inf else max(0.0, deadline - time.monotonic()),
            )
        if task.stopping or time.monotonic() > deadline:
            left = 0
            machine.store.update(KIND, task.name, HyperParameterTuningJobStatus="Stopping")
            _stop(machine, running)
        for name in [name for name in running if machine.task(training.KIND, name) is None]:
            value, stopped = _finish_trial(machine, name, objective, name in early)
            search.tell(running.pop(name), value, stopped)
            publish(machine, task.name)
    if task.stopping:
        return "Stopped", task.reason
    trials = machine.store.list(training.KIND, parent=task.name)
    if any(trial["ObjectiveStatus"] == "Succeeded" for trial in trials):
        return "Completed", ""
    failed = next((trial for trial in trials if "FailureReason" in trial), None)
    if failed is None:
        return "Failed", f"None of {len(trials)} training jobs completed"
    return "Failed", f"All training jobs failed. {failed['TrainingJobName']} said: {failed['FailureReason']}"


def _notify(changed: threading.Condition) -> None:
    with changed:
        changed.notify_all()


def _stop(machine: Machine, names: dict[str, Any]) -> None:
    """Stop trials and wait until they have ended."""
    for name in names:
        trial = machine.task(training.KIND, name)
        if trial:
            trial.stop()
    for name in names:
        machine.wait(training.KIND, name)


def _start_trial(
    machine: Machine,
    job: Document,
    name: str,
    values: dict[str, str],
    observe: training.Observer,
    ended: Callable[[], None],
) -> None:
    definition = job["TrainingJobDefinition"]
    config = job["HyperParameterTuningJobConfig"]
    inherited = _INHERITED.split()
    request = {key: definition[key] for key in inherited if key in definition}
    request |= {
        "TrainingJobName": name,
        "ResourceConfig": definition.get("ResourceConfig", {"InstanceCount": 1, "InstanceType": "local"}),
        "HyperParameters": {
            **definition.get("StaticHyperParameters", {}),
            **values,
            "_tuning_objective_metric": config["HyperParameterTuningJobObjective"]["MetricName"],
        },
    }
    trial = {
        "TuningJobName": job["HyperParameterTuningJobName"],
        "TuningJobArn": job["HyperParameterTuningJobArn"],
        "TunedHyperParameters": values,
        "ObjectiveStatus": "Pending",
    }
    training.create(machine, request, trial, observe)
    task = machine.task(training.KIND, name)
    # The thread that waits costs little and ends with its trial.
    threading.Thread(target=_when_done, args=(task, ended), daemon=True).start()


def _when_done(task: Task | None, then: Callable[[], None]) -> None:
    if task:
        task.done.wait()
    then()


def _finish_trial(machine: Machine, name: str, objective: Document, early: bool) -> tuple[float | None, bool]:
    """Note a trial's objective; a trial that completed without one has failed.

    Args:
        machine: where it ran.
        name: the trial's.
        objective: HyperParameterTuningJobObjective.
        early: whether it was told to end early; it may have been about to end, and then it has completed.

    Returns:
        Its objective, None if it has none; and whether it did end early.
    """

    def note(trial: Document) -> None:
        values = {item["MetricName"]: item["Value"] for item in trial.get("FinalMetricDataList", [])}
        value = values.get(objective["MetricName"])
        ended = trial["TrainingJobStatus"] == "Completed" or (early and trial["TrainingJobStatus"] == "Stopped")
        if ended and value is not None:
            trial["FinalHyperParameterTuningJobObjectiveMetric"] = {**objective, "Value": value}
            trial["ObjectiveStatus"] = "Succeeded"
            return
        trial["ObjectiveStatus"] = "Failed"
        if trial["TrainingJobStatus"] == "Completed":
            trial["TrainingJobStatus"] = trial["SecondaryStatus"] = "Failed"
            trial["FailureReason"] = NO_OBJECTIVE
            trial["SecondaryStatusTransitions"][-1] |= {"Status": "Failed", "StatusMessage": NO_OBJECTIVE}

    trial = machine.store.change(training.KIND, name, note)
    metric = trial.get("FinalHyperParameterTuningJobObjectiveMetric")
    return float(metric["Value"]) if metric else None, trial["TrainingJobStatus"] == "Stopped"


def publish(machine: Machine, name: str) -> None:
    """Bring the tuning job's counters and best trial up to date."""
    trials = machine.store.list(training.KIND, parent=name)
    fields = _counters(trials)
    done = [trial for trial in trials if trial.get("ObjectiveStatus") == "Succeeded"]
    if done:
        sign = 1 if done[0]["FinalHyperParameterTuningJobObjectiveMetric"]["Type"] == "Minimize" else -1
        fields["BestTrainingJob"] = summary(
            min(done, key=lambda trial: sign * trial["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])
        )
    machine.store.update(KIND, name, **fields)


def _counters(trials: list[Document]) -> Document:
    states = [trial["TrainingJobStatus"] for trial in trials]
    objectives = [trial["ObjectiveStatus"] for trial in trials]
    return {
        "TrainingJobStatusCounters": {
            "Completed": states.count("Completed"),
            "InProgress": len([state for state in states if state not in _ENDED]),
            "RetryableError": 0,
            "NonRetryableError": states.count("Failed"),
            "Stopped": states.count("Stopped"),
        },
        "ObjectiveStatusCounters": {state: objectives.count(state) for state in ("Succeeded", "Pending", "Failed")},
    }


def summary(trial: Document) -> Document:
    """A trial as HyperParameterTrainingJobSummary."""
    wanted = (
        "TrainingJobName TrainingJobArn TuningJobName CreationTime TrainingStartTime TrainingEndTime TrainingJobStatus"
        " TunedHyperParameters FailureReason FinalHyperParameterTuningJobObjectiveMetric ObjectiveStatus"
    )
    return {key: trial[key] for key in wanted.split() if key in trial}
