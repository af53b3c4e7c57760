"""Every knob of the project, once: typed, checked, with its unit and the reason for its default.

A preset in `configs/*.yaml` sets some of them; `--set field=value` on the command line sets others. Fields marked
«pipeline parameter» can also be changed per execution, in Studio or with `start -p`.
"""

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipelines.backbones import NAMES
from pipelines.errors import UserError

LOCAL_ACCOUNT = "000000000000"  # never a real account: what is built for it cannot reach one by accident
# What PyYAML raises on text that is not YAML, or that looks like a date or number and is none (2026-13-01, 0b_).
_NOT_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)


# Pipeline parameters, and the fields their defaults come from.
PARAMETERS = {
    "InputData": "data",
    "Weights": "weights",
    "ProcessingInstanceType": "processing_instance_type",
    "TrainingInstanceType": "training_instance_type",
    "TrainingInstanceCount": "training_instance_count",
    "EndpointInstanceType": "endpoint_instance_type",
    "Epochs": "epochs",
    "Trainable": "trainable",
    "TestLossThreshold": "test_loss_threshold",
    "ApprovalStatus": "approval_status",
    "EndpointName": "endpoint_name",
}


class SettingsError(UserError):
    """A setting is wrong. The message names the field, the value and what was expected."""


class _Strict(BaseModel):
    # No infinity and no NaN: JSON has neither, and a definition is JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Continuous(_Strict):
    """A real-valued range of the search space, both ends included."""

    min: float
    max: float
    scale: Literal["linear", "log"] = "linear"
    """`log` searches orders of magnitude evenly, as a learning rate wants."""

    @model_validator(mode="after")
    def _ordered(self) -> "Continuous":
        if not self.min < self.max:
            raise ValueError(f"min ({self.min:g}) must be below max ({self.max:g})")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"a log scale needs min > 0, not {self.min:g}")
        return self


class Categorical(_Strict):
    """A list of values to choose among."""

    values: Annotated[list[float], Field(min_length=1, max_length=30)]


def _kind_of_range(value: Any) -> str:
    if isinstance(value, Categorical) or (isinstance(value, dict) and "values" in value):
        return "values"
    return "min..max"


Range = Annotated[
    Annotated[Categorical, Tag("values")] | Annotated[Continuous, Tag("min..max")], Discriminator(_kind_of_range)
]
Fraction = Annotated[float, Field(gt=0, lt=0.5)]
InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]


# The most a hyperparameter of the head may be, besides at least 0.
_MOST = {"weight_decay": 100.0, "label_smoothing": 0.99, "mixup": 100.0}


class Settings(_Strict):
    """The settings of one pipeline. Construct with `load()`, which turns errors into one line each."""

    # -- where --------------------------------------------------------------------------------------------------------
    name: Annotated[str, Field(pattern=r"^[a-z0-9](-*[a-z0-9])*$", max_length=40)] = "dogbreed"
    """Name of the pipeline, of its model package group, and prefix of all it keeps in the bucket."""
    region: Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")] = "us-east-1"
    """AWS region; decides which registry the container images come from."""
    account: Annotated[str, Field(pattern=r"^\d{12}$")] = LOCAL_ACCOUNT
    """AWS account, 12 digits, in quotes. On AWS the command line fills it in from the credentials in use."""
    bucket: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$")] = ""
    """Bucket for code, weights and outputs. Empty: SageMaker's own, `sagemaker-REGION-ACCOUNT`."""
    role: Annotated[str, Field(pattern=r"^(arn:aws[a-z-]*:iam::\d{12}:role/.+|[\w+=,.@/-]+)$")] = (
        "SageMakerPipelineRole"
    )
    """The role the jobs run as: a name in the account, or a full ARN."""
    kms_key: Annotated[str, Field(pattern=r"^[a-zA-Z0-9:_/-]*$")] = ""
    """KMS key for outputs and volumes. Empty: S3's own encryption (always on) and SageMaker's."""

    # -- data ---------------------------------------------------------------------------------------------------------
    data: str = ""
    """Photos in class folders: a local folder or `s3://…`. Pipeline parameter InputData (there always `s3://…`)."""
    valid_fraction: Fraction = 0.1
    """Share of photos for validation: what trials are compared on."""
    test_fraction: Fraction = 0.1
    """Share of photos for the test: what the gate looks at, and nothing before it."""
    split_salt: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Another number gives another split of the same photos, for comparing results over several."""
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of photos that may be unreadable before Split fails. They are set aside and listed either way."""
    max_pixels: Annotated[int, Field(ge=1024, le=1_000_000_000)] = 100_000_000
    """Photos with more pixels than this count as unreadable: decoding one needs 3 bytes a pixel."""

    # -- network ------------------------------------------------------------------------------------------------------
    backbone: str = "resnet18"
    """A torchvision classification model by name."""
    weights: str = "IMAGENET1K_V1"
    """Pretrained weights: a torchvision name, a local file, an `s3://…` object, or `random`. Pipeline parameter
    Weights."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    """Side of the square the network sees, pixels."""
    resize_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Length of a photo's shorter side before the square is cut from its centre, pixels. 0: image_size, so that nothing
    of the shorter side is lost; torchvision's own evaluation of most weights has 256 for an image_size of 224."""

    augmented_views: Annotated[int, Field(ge=0, le=32)] = 0
    """Random crops of each training photo that are embedded beside the evaluation view: better heads, for as many
    forward passes more."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the backbone's arithmetic in Embed. bf16 takes half the time where processor or GPU have it, and features are
    off by less than 1 %."""
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What runs the backbone in Embed; auto is the fastest that is installed."""
    embed_instance_count: Annotated[int, Field(ge=1, le=20)] = 1
    """Instances that share Embed's work, by shards of about 150 MB."""

    # -- search -------------------------------------------------------------------------------------------------------
    lr: Range = Continuous(min=1e-4, max=1e-1, scale="log")
    """Learning rate of the head."""
    batch_size: Range = Categorical(values=[32, 64, 128, 256])
    """Photos a step."""
    weight_decay: Range = Categorical(values=[0.3])
    """AdamW's decoupled weight decay, of the head: large, for features outnumber photos more often than not. Like those
    that follow, tuned where it is a range or a list of several values."""
    label_smoothing: Range = Categorical(values=[0.0])
    """Share of each label that is spread over all classes, 0 to below 1."""
    mixup: Range = Categorical(values=[0.0])
    """Alpha of mixup in feature space; 0 mixes none."""
    views: Range | None = None
    """Augmented views that a head learns from, at most augmented_views. Not given: all of them."""
    strategy: Literal["Random", "Grid", "Bayesian", "Hyperband"] = "Bayesian"
    """How the tuner chooses the next trial. Grid tries all combinations and needs categorical ranges only; Hyperband
    stops trials early that fall behind."""
    early_stopping: bool = False
    """Whether the tuner stops trials that do worse than the median of those before. Hyperband has its own way."""
    trials: Annotated[int, Field(ge=1, le=750)] = 8
    """How many trials at most. Grid runs as many as there are combinations."""
    parallel_trials: Annotated[int, Field(ge=1, le=100)] = 2
    """How many trials at the same time: each is an instance, and Bayesian search learns only from finished ones."""
    objective: Literal["average validation loss", "average test loss"] = "average validation loss"
    """What trials are compared on, less is better. The test loss is the reference experiment's choice; the gate then
    looks at a figure the search has already seen."""

    # -- training -----------------------------------------------------------------------------------------------------
    epochs: Annotated[int, Field(ge=1, le=1000)] = 20
    """Passes over the features. Pipeline parameter Epochs."""
    patience: Annotated[int, Field(ge=0, le=1000)] = 0
    """Epochs without a better validation loss after which a head is done; 0: it takes all of them."""
    seed: Annotated[int, Field(ge=0, lt=2**31 - 1)] = 0
    """Seeds shuffling, initialisation and the tuner."""
    trainable: Literal["head", "all"] = "head"
    """`head` trains on features of the frozen backbone; `all` then fine-tunes everything from there. Pipeline parameter
    Trainable."""
    fine_tune_epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Passes over the photos when everything is trainable."""
    fine_tune_lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Learning rate of the head in fine-tuning; the backbone's is a tenth of it."""
    debugger: Literal["job", "managed", "off"] = "job"
    """Where SageMaker Debugger's part runs: inside the job, in AWS' managed service (closed to new customers since July
    2026), or nowhere."""
    debugger_save_interval: Annotated[int, Field(ge=1, le=100_000)] = 10
    """Steps between two savings of tensors in training."""
    profiler_interval_ms: Literal[100, 200, 500, 1000, 5000, 60000] = 500
    """Milliseconds between two samples of the system; AWS allows these."""

    # -- gate and release ---------------------------------------------------------------------------------------------
    test_loss_threshold: Annotated[float, Field(ge=0)] = 1.0
    """The gate lets a model pass whose test loss is at most this. Pipeline parameter TestLossThreshold."""
    approval_status: Literal["Approved", "PendingManualApproval", "Rejected"] = "PendingManualApproval"
    """The registered package's status; only Approved deploys at once. Pipeline parameter ApprovalStatus."""
    endpoint_name: Annotated[str, Field(pattern=r"^([a-zA-Z0-9](-*[a-zA-Z0-9]){0,62})?$")] = ""
    """Name of the endpoint. Empty: the pipeline's name. Pipeline parameter EndpointName."""

    # -- machines -----------------------------------------------------------------------------------------------------
    processing_instance_type: InstanceType = "ml.m5.xlarge"
    """For Split, Embed and Evaluate. Pipeline parameter ProcessingInstanceType."""
    training_instance_type: InstanceType = "ml.m5.xlarge"
    """For trials and Train; a GPU type selects the GPU image. Pipeline parameter TrainingInstanceType."""
    training_instance_count: Annotated[int, Field(ge=1, le=20)] = 1
    """Pipeline parameter TrainingInstanceCount. A head needs one."""
    endpoint_instance_type: InstanceType = "ml.m5.large"
    """Pipeline parameter EndpointInstanceType."""
    volume_gb: Annotated[int, Field(ge=10, le=16_384)] = 30
    """Disk of each job's instance, GB: room for the dataset twice."""
    max_runtime_minutes: Annotated[int, Field(ge=1, le=5 * 24 * 60)] = 240
    """A job still running after this is stopped."""
    cache_days: Annotated[int, Field(ge=0, le=365)] = 30
    """How long a step's result is reused when its inputs are the same; 0 switches caching off."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_switches(cls, value: Any, field: ValidationInfo) -> Any:
        """Few fields are switches, and YAML reads `on` and `yes` as true, which pydantic would take for 1."""
        if isinstance(value, bool) and field.field_name not in ("debugger", "early_stopping"):
            raise ValueError("expected a value, not true or false")
        return value

    @field_validator("lr", "batch_size", "weight_decay", "label_smoothing", "mixup", "views", mode="before")
    @classmethod
    def _range_shorthand(cls, value: Any) -> Any:
        """A list is a categorical range, a single number one with one value."""
        if isinstance(value, list):
            return {"values": value}
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"values": [value]}
        return value

    @field_validator("debugger", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads `off` as false."""
        return "off" if value is False else value

    @field_validator("backbone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in NAMES:
            close = difflib.get_close_matches(value, NAMES, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(NAMES)}"
            raise ValueError(f"torchvision has no classification model of that name; {hint}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if 0 < self.resize_size < self.image_size:
            raise ValueError(f"resize_size ({self.resize_size}) must be 0 or at least image_size ({self.image_size})")
        for name, values in self.space.items():
            least, most = min(_bounds(values)), max(_bounds(values))
            if name in ("lr", "batch_size") and least <= 0:
                raise ValueError(f"{name} must be above 0, not {least:g}")
            if least < 0 or most > _MOST.get(name, math.inf):
                above = f" to {_MOST[name]:g}" if name in _MOST else " and above"
                raise ValueError(f"{name} takes 0{above}, not {least if least < 0 else most:g}")
        for name in ("batch_size", "views"):
            if any(value != int(value) for value in _bounds(self.space[name])):
                raise ValueError(f"{name} takes whole numbers")
        most = max(_bounds(self.space["views"]))
        if most > self.augmented_views:
            raise ValueError(f"views must be at most augmented_views ({self.augmented_views}), not {most:g}")
        if self.strategy == "Grid" and any(isinstance(each, Continuous) for each in self.tuned.values()):
            raise ValueError("strategy Grid needs lists of values for all it tunes, e.g. lr: [0.001, 0.1]")
        if self.strategy == "Hyperband" and self.early_stopping:
            raise ValueError("early_stopping is for the other strategies: Hyperband stops trials by itself")
        if self.strategy == "Hyperband" and self.epochs < 2:
            raise ValueError("strategy Hyperband needs epochs of at least 2, among which it can stop a trial")
        return self

    @property
    def space(self) -> dict[str, Range]:
        """The hyperparameters of a head that may be tuned, by name."""
        views = self.views if self.views is not None else Categorical(values=[float(self.augmented_views)])
        return {
            "lr": self.lr,
            "batch_size": self.batch_size,
            "weight_decay": self.weight_decay,
            "label_smoothing": self.label_smoothing,
            "mixup": self.mixup,
            "views": views,
        }

    @property
    def tuned(self) -> dict[str, Range]:
        """Those that are tuned: learning rate and batch size always, the others where there is a choice."""
        return {
            name: values
            for name, values in self.space.items()
            if name in ("lr", "batch_size") or isinstance(values, Continuous) or len(values.values) > 1
        }

    @property
    def fixed(self) -> dict[str, float]:
        """The value of each of the others."""
        return {
            name: values.values[0]
            for name, values in self.space.items()
            if name not in self.tuned and isinstance(values, Categorical)
        }

    @property
    def planned_trials(self) -> int:
        """How many trials there will be at most: for a grid, its combinations."""
        if self.strategy == "Grid":
            return math.prod(len(each.values) for each in self.tuned.values() if isinstance(each, Categorical))
        return self.trials

    @property
    def bucket_name(self) -> str:
        """The bucket in use, given or SageMaker's default."""
        return self.bucket or f"sagemaker-{self.region}-{self.account}"

    @property
    def base_uri(self) -> str:
        """`s3://BUCKET/NAME`: everything the pipeline keeps lies below."""
        return f"s3://{self.bucket_name}/{self.name}"

    @property
    def partition(self) -> str:
        """The first part of the region's ARNs: `aws`, `aws-cn` or `aws-us-gov`."""
        return {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(self.region.rsplit("-", 2)[0], "aws")

    @property
    def role_arn(self) -> str:
        """The role as an ARN."""
        return (
            self.role if self.role.startswith("arn:") else f"arn:{self.partition}:iam::{self.account}:role/{self.role}"
        )


def _bounds(values: Range) -> list[float]:
    return [values.min, values.max] if isinstance(values, Continuous) else [float(v) for v in values.values]


def load(config: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from a preset file, then overrides; whatever neither names keeps its default.

    Args:
        config: a YAML file of `field: value` lines.
        overrides: fields by name. Strings are read as YAML, so `--set lr=[0.001,0.1]` gives a list.

    Raises:
        SettingsError: the file cannot be read, or a field is unknown or out of its bounds.
    """
    values: dict[str, Any] = {}
    if config is not None:
        values = _read(config)
    for name, value in (overrides or {}).items():
        values[name] = _parse(name, value) if isinstance(value, str) else value
    source = str(config) if config is not None else "the command line"
    unknown = [name for name in values if name not in Settings.model_fields]
    if unknown:
        named = overrides or {}
        raise SettingsError(
            "\n".join(_unknown("the command line" if name in named else source, name) for name in unknown)
        )
    try:
        return Settings(**values)
    except ValidationError as error:
        given = overrides or {}
        raise SettingsError(
            "\n".join(
                _explain("the command line" if detail["loc"] and detail["loc"][0] in given else source, detail)
                for detail in error.errors()
            )
        ) from None


def check(field: str, text: str, source: str) -> None:
    """Check one value as `load` would.

    Raises:
        SettingsError: naming `source` and the value.
    """
    try:
        Settings(**{field: _parse(field, text)})
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(source, detail) for detail in error.errors())) from None


def _read(config: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config.read_text())
    except OSError as error:
        presets = ", ".join(sorted(str(path) for path in Path("configs").glob("*.yaml"))) or "none in ./configs"
        raise SettingsError(f"--config {config}: {error.strerror or error}; presets here: {presets}") from None
    except _NOT_YAML as error:
        raise SettingsError(f"--config {config}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"--config {config}: expected lines of `field: value`, got {type(values).__name__}")
    return values


def _parse(name: str, text: str) -> Any:
    field = Settings.model_fields.get(name)
    if field is not None and field.annotation is str:
        return text
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML:
        raise SettingsError(f"--set {name}={text}: not a value YAML can read; quote it") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _unknown(source: str, name: str) -> str:
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(Settings.model_fields))}"
    return f"{source}: unknown field {name!r}; {hint}"


def _explain(source: str, detail: Any) -> str:
    """One line for one of pydantic's errors: field, value, what was expected."""
    place = [str(part) for part in detail["loc"] if part not in ("values", "min..max")]
    message = detail["msg"].removeprefix("Value error, ")
    if not place:
        return f"{source}: {message}"
    expected = f"{message[0].lower()}{message[1:]}"
    if detail["type"] == "model_type":  # pydantic would name our classes
        expected = "expected a list of values such as [0.001, 0.1], or {min: …, max: …, scale: linear or log}"
    return f"{source}: {'.'.join(place)} = {detail['input']!r}: {expected}"
