"""The training toolkit's contract, as the process of a training job.

On AWS the framework image carries `sagemaker-training`, which does this: read /opt/ml/input/config, fetch and unpack
`sagemaker_submit_directory`, set the SM_* environment, and run `python PROGRAM --name value …`. This is a plain script
with nothing of the service in it: it only shares with it the files under /opt/ml (SAGEMAKER_BASE_DIR).

    SAGEMAKER_BASE_DIR=/some/opt/ml python -P toolkit.py

Exit status: the script's; 1 with a message in output/failure if it could not be started.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

BASE = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
RESERVED = ("sagemaker_", "_tuning_objective_metric")  # hyperparameters meant for the toolkit, not for the script
_TAIL = 4096  # bytes of the log's end to look for the error in


class Refused(Exception):
    """The job can not start, and why."""


def main() -> int:
    """Run the job in BASE; returns its exit status."""
    failure = BASE / "output" / "failure"
    try:
        hyperparameters = {name: decode(value) for name, value in config("hyperparameters").items()}
        program = str(hyperparameters.get("sagemaker_program", ""))
        archive = str(hyperparameters.get("sagemaker_submit_directory", ""))
        if not program or not archive:
            raise Refused("the hyperparameters sagemaker_program and sagemaker_submit_directory are needed")
        code = BASE / "code"
        unpack(archive, code)
        if not (code / program).is_file():
            raise Refused(f"{program} (sagemaker_program) is not in {archive}")
        check_requirements(code / "requirements.txt")
    except Refused as error:
        failure.write_text(f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        return 1
    own = {name: value for name, value in sorted(hyperparameters.items()) if not name.startswith(RESERVED)}
    arguments = as_arguments(own)
    command = [sys.executable, program, *arguments]
    print("Invoking script with the following command:\n\n" + " ".join(command) + "\n", flush=True)
    environment = {**os.environ, **variables(program, archive, own, arguments), "PYTHONPATH": str(code)}
    # SIGTERM goes to the whole process group: the script gets it too, may save its state, and ends; wait for it.
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_stop.append(number))
    script = subprocess.Popen(command, cwd=code, env=environment)
    if told_to_stop:  # just before there was a script to hear it
        script.terminate()
    status = script.wait()
    if status and not failure.exists():
        last = last_line()
        failure.write_text(
            f'ExecuteUserScriptError: ExitCode {status}, ErrorMessage "{last}", Command "{" ".join(command)}"'
        )
    return status if status >= 0 else 128 - status  # ended by a signal: what a shell would say


def config(name: str) -> dict[str, Any]:
    """One of the files in /opt/ml/input/config."""
    content: dict[str, Any] = json.loads((BASE / "input" / "config" / f"{name}.json").read_text())
    return content


def decode(value: str) -> Any:
    """A hyperparameter: JSON if it reads as JSON (`10`, `"10"`, `true`), else the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def unpack(uri: str, folder: Path) -> None:
    """Fetch `s3://…/sourcedir.tar.gz` from AWS_ENDPOINT_URL and unpack it."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme != "s3":
        raise Refused(f"sagemaker_submit_directory is {uri!r}; expected s3://BUCKET/KEY of a .tar.gz")
    url = f"{os.environ['AWS_ENDPOINT_URL']}/{parts.netloc}{urllib.parse.quote(parts.path)}"
    try:
        with urllib.request.urlopen(url, timeout=60) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:  # noqa: S310 - our own service
            archive.extractall(folder, filter="data")
    except urllib.error.HTTPError as error:
        raise Refused(f"sagemaker_submit_directory {uri} can not be fetched: {error.code} {error.reason}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Refused(f"sagemaker_submit_directory {uri} can not be unpacked: {error}") from None


def check_requirements(file: Path) -> None:
    """What requirements.txt asks for must be installed: jobs here have no network, so nothing is installed for them."""
    if not file.is_file():
        return
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import parse_wheel_filename

    missing = []
    for line in file.read_text().splitlines():
        text = line.split(" #")[0].split(" --")[0].strip().removesuffix("\\").strip()
        if not text or text.startswith(("#", "-")) or "://" in text.split(";")[0].split("@")[0]:
            continue  # an option or a plain URL: pip's business, which there is none of here
        try:
            if text.endswith(".whl"):  # a wheel the bundle carries: the same version must be there
                name, version, *_ = parse_wheel_filename(Path(text).name)
                text = f"{name}=={version}"
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise Refused(f"requirements.txt: {text!r} is not a requirement ({error})") from None
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            have = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{wanted} (not installed)")
        else:
            if have not in wanted.specifier and not wanted.specifier.contains(have, prereleases=True):
                missing.append(f"{wanted} (installed: {have})")
    if missing:
        raise Refused(
            f"requirements.txt asks for {', '.join(missing)}. Jobs on this machine use the environment the service runs"
            f" in: install it there ({sys.executable} -m pip install …)."
        )


def as_arguments(hyperparameters: dict[str, Any]) -> list[str]:
    """`{"lr": 0.1, "flag": True}` as `--lr 0.1 --flag True`; names of one letter get one dash."""
    arguments: list[str] = []
    for name, value in hyperparameters.items():
        arguments += [f"--{name}" if len(name) > 1 else f"-{name}", as_text(value)]
    return arguments


def as_text(value: Any) -> str:
    """A decoded hyperparameter as an argument."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else str(value)


def variables(program: str, archive: str, own: dict[str, Any], arguments: list[str]) -> dict[str, str]:
    """The SM_* environment (see ENVIRONMENT_VARIABLES.md of sagemaker-training-toolkit)."""
    resources = config("resourceconfig")
    inputs = config("inputdataconfig")
    gpus = _gpus()
    folders = {
        "SM_MODEL_DIR": BASE / "model",
        "SM_INPUT_DIR": BASE / "input",
        "SM_INPUT_CONFIG_DIR": BASE / "input" / "config",
        "SM_OUTPUT_DIR": BASE / "output",
        "SM_OUTPUT_DATA_DIR": BASE / "output" / "data",
        "SM_OUTPUT_INTERMEDIATE_DIR": BASE / "output" / "intermediate",
    }
    folders["SM_OUTPUT_INTERMEDIATE_DIR"].mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        **folders,
        "SM_MODULE_NAME": program.removesuffix(".py"),
        "SM_MODULE_DIR": archive,
        "SM_USER_ENTRY_POINT": program,
        "SM_USER_ARGS": json.dumps(arguments),
        "SM_HPS": json.dumps(own),
        "SM_CHANNELS": json.dumps(sorted(inputs)),
        "SM_INPUT_DATA_CONFIG": json.dumps(inputs),
        "SM_RESOURCE_CONFIG": json.dumps(resources),
        "SM_HOSTS": json.dumps(resources["hosts"]),
        "SM_CURRENT_HOST": resources["current_host"],
        "SM_CURRENT_INSTANCE_TYPE": resources["current_instance_type"],
        "SM_CURRENT_INSTANCE_GROUP": resources["current_group_name"],
        "SM_NETWORK_INTERFACE_NAME": resources["network_interface_name"],
        "SM_NUM_CPUS": os.cpu_count() or 1,
        "SM_NUM_GPUS": gpus,
        "SM_LOG_LEVEL": 20,
        "SM_FRAMEWORK_PARAMS": "{}",
    }
    values |= {f"SM_HP_{name.upper()}": as_text(value) for name, value in own.items()}
    values |= {f"SM_CHANNEL_{name.upper()}": BASE / "input" / "data" / name for name in inputs}
    return {name: str(value) for name, value in values.items()}


def _gpus() -> int:
    """NVIDIA devices, without importing a framework."""
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def last_line() -> str:
    """The last line of the log so far, which is where Python says what went wrong.

    Standard error is the log file itself, opened for reading too; in a container it is a pipe, and there is no line.
    """
    try:
        size = os.fstat(2).st_size
        lines = os.pread(2, _TAIL, max(0, size - _TAIL)).decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main())
