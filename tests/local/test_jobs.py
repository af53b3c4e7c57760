"""Processing and training jobs started directly, through boto3."""

import datetime
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.local.definitions import BUCKET, OUT, Clients, bundle, channel, processing, training_request, until

PROCESSING = "/aws/sagemaker/ProcessingJobs"
TRAINING = "/aws/sagemaker/TrainingJobs"


def process(clients: Clients, name: str, step: dict[str, Any], **request: Any) -> dict[str, Any]:
    """Run a processing step's arguments as a job; its description once it has ended."""
    clients.sm.create_processing_job(ProcessingJobName=name, **{**step["Arguments"], **request})
    return until(
        lambda: clients.sm.describe_processing_job(ProcessingJobName=name),
        lambda job: job["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped"),
    )


def train(clients: Clients, name: str, code: str, request: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Run `code` as train.py; the job's description once it has ended."""
    uri = clients.put(f"code/{name}.tar.gz", bundle(train=code, **more.pop("files", {})))
    hyperparameters = more.pop("hyperparameters", {})
    full = {**training_request(uri, **hyperparameters), **(request or {})}
    clients.sm.create_training_job(TrainingJobName=name, **full)
    return until(
        lambda: clients.sm.describe_training_job(TrainingJobName=name),
        lambda job: job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"),
    )


# --- processing


def test_inputs_keep_their_paths_and_outputs_too(clients: Clients) -> None:
    for key in ("in/a.txt", "in/b/c.txt", "in-other/d.txt"):
        clients.put(key, key)
    code = """
import os, pathlib, sys
source, target = map(pathlib.Path, sys.argv[1:])
for path in sorted(source.rglob("*")):
    if path.is_file():
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text().upper())
"""
    step = processing("P", clients.put("code/upper.py", code), {"i": f"s3://{BUCKET}/in"}, {"o": f"{OUT}/upper"})
    job = process(clients, "upper", step)
    assert job["ProcessingJobStatus"] == "Completed"
    assert job["ProcessingStartTime"] <= job["ProcessingEndTime"]
    assert clients.keys("out/upper/") == ["a.txt", "b/c.txt"]
    assert clients.get(f"{OUT}/upper/b/c.txt") == b"IN/B/C.TXT"


def test_a_uri_of_one_object_is_that_object(clients: Clients) -> None:
    uri = clients.put("single/model.tar.gz", "x")
    clients.put("single/model.tar.gz.txt", "y")
    step = processing("P", "import os, sys; print(os.listdir(sys.argv[1]))", {"model": uri})
    process(clients, "single", step)
    assert clients.log(PROCESSING, "single") == "['model.tar.gz']"


def test_an_object_is_the_same_whatever_a_job_does_to_its_input(clients: Clients) -> None:
    uri = clients.put("kept/a.txt", "as it was")
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1], 'a.txt'); p.unlink(); p.write_text('changed')"
    assert process(clients, "changing", processing("P", code, {"i": uri}))["ProcessingJobStatus"] == "Completed"
    assert clients.get(uri) == b"as it was"


def test_several_instances_share_the_keys(clients: Clients) -> None:
    for n in range(5):
        clients.put(f"shards/{n}", str(n))
    code = """
import json, os, pathlib, sys
source, target = map(pathlib.Path, sys.argv[1:])
config = json.loads((source.parents[2] / "config" / "resourceconfig.json").read_text())
(target / config["current_host"]).write_text(" ".join(sorted(os.listdir(source))))
"""
    step = processing("P", clients.put("code/shard.py", code), {"s": f"s3://{BUCKET}/shards"}, {"o": f"{OUT}/sharded"})
    step["Arguments"]["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 2
    step["Arguments"]["ProcessingInputs"][0]["S3Input"]["S3DataDistributionType"] = "ShardedByS3Key"
    assert process(clients, "sharded", step)["ProcessingJobStatus"] == "Completed"
    assert clients.get(f"{OUT}/sharded/algo-1") == b"0 2 4"
    assert clients.get(f"{OUT}/sharded/algo-2") == b"1 3"


def test_a_job_sees_no_environment_but_its_own(clients: Clients, state: Path) -> None:
    step = processing("P", "import json, os; print(json.dumps(dict(os.environ)))")
    process(clients, "environment", step, Environment={"PLACE": "/opt/ml/processing", "URI": "s3://b/opt/ml/x"})
    seen = json.loads(clients.log(PROCESSING, "environment"))
    own = state.resolve() / "jobs" / "environment"
    assert seen["PLACE"] == f"{own}/opt/ml/processing"
    assert seen["URI"] == "s3://b/opt/ml/x"
    assert seen["AWS_ENDPOINT_URL"] == clients.url
    assert (seen["AWS_ACCESS_KEY_ID"], seen["AWS_CONFIG_FILE"]) == ("local", "/dev/null")
    assert seen["HOME"].startswith(str(own))
    assert not {"PYTEST_CURRENT_TEST", "AWS_PROFILE", "AWS_SESSION_TOKEN", "PYTHONPATH"} & set(seen)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"i": f"s3://{BUCKET}/nothing/here"}, f'No S3 objects found under S3 URL "s3://{BUCKET}/nothing/here"'),
        ({"i": "s3://no-such-bucket/x"}, "The specified bucket does not exist: no-such-bucket"),
        ({"i": f"s3://{BUCKET}/a/../../../etc"}, "'..' part"),
    ],
)
def test_an_input_that_is_not_there(clients: Clients, inputs: dict[str, str], words: str) -> None:
    name = f"input-{abs(hash(words))}"
    job = process(clients, name, processing("P", "pass", inputs))
    assert job["ProcessingJobStatus"] == "Failed"
    assert words in job["FailureReason"]


@pytest.mark.parametrize("place", ["/etc/cron.d", "/opt/ml/../../etc", "relative"])
def test_local_paths_stay_within_the_job(clients: Clients, place: str) -> None:
    step = processing("P", "pass", outputs={"o": f"{OUT}/outside"})
    step["Arguments"]["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["LocalPath"] = place
    job = process(clients, f"outside-{abs(hash(place))}", step)
    assert "LocalPath must lie under /opt/ml/" in job["FailureReason"]


def test_an_entrypoint_that_is_not_there(clients: Clients) -> None:
    step = processing("P", "pass")
    step["Arguments"]["AppSpecification"]["ContainerEntrypoint"] = ["/no/such/program"]
    job = process(clients, "no-program", step)
    assert job["ProcessingJobStatus"] == "Failed"
    assert "/no/such/program" in job["FailureReason"]


def test_an_output_that_links_out_of_the_job_is_refused(clients: Clients) -> None:
    code = "import os, sys; os.symlink('/etc/hostname', sys.argv[1] + '/stolen')"
    job = process(clients, "stealing", processing("P", code, outputs={"o": f"{OUT}/stolen"}))
    assert "stolen is a link out of the job" in job["FailureReason"]
    assert clients.keys("out/stolen/") == []


def test_max_runtime(clients: Clients) -> None:
    step = processing("P", "import time; time.sleep(60)")
    job = process(clients, "slow", step, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert job["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntimeExceeded" in job["FailureReason"]


def test_names_are_unique_and_jobs_are_listed(clients: Clients) -> None:
    step = processing("P", "pass")
    for name in ("unique-a", "unique-b"):
        process(clients, name, step)
    with pytest.raises(clients.sm.exceptions.ResourceInUse, match="unique-a"):
        clients.sm.create_processing_job(ProcessingJobName="unique-a", **step["Arguments"])
    listed = clients.sm.list_processing_jobs(NameContains="unique-", SortBy="Name", SortOrder="Ascending")
    assert [job["ProcessingJobName"] for job in listed["ProcessingJobSummaries"]] == ["unique-a", "unique-b"]
    assert (
        clients.sm.list_processing_jobs(NameContains="unique-", StatusEquals="Failed")["ProcessingJobSummaries"] == []
    )
    with pytest.raises(clients.sm.exceptions.ResourceNotFound, match="nobody"):
        clients.sm.describe_processing_job(ProcessingJobName="nobody")


def test_stop_of_a_job_that_waits_for_a_slot(clients: Clients) -> None:
    step = processing("P", "import time; time.sleep(60)")
    names = [f"waiting-{n}" for n in range(3)]
    for name in names:
        clients.sm.create_processing_job(ProcessingJobName=name, **step["Arguments"])
    for name in reversed(names):  # the third has no slot yet
        clients.sm.stop_processing_job(ProcessingJobName=name)
    for name in names:
        job = until(
            lambda name=name: clients.sm.describe_processing_job(ProcessingJobName=name),
            lambda job: job["ProcessingJobStatus"] not in ("InProgress", "Stopping"),
        )
        assert job["ProcessingJobStatus"] == "Stopped"


# --- training: the training toolkit's contract


def test_the_environment_the_toolkit_promises(clients: Clients) -> None:
    clients.put("photos/a.txt", "a")
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    given = {"batch-size": '"10"', "lr": "0.1", "flag": "true", "name": "resnet18", "quoted": '"\\"10\\""'}
    request = {"InputDataConfig": [channel("photos", f"s3://{BUCKET}/photos")], "Environment": {"OWN": "/opt/ml/x"}}
    job = train(clients, "promises", code, request, hyperparameters=given)
    assert job["TrainingJobStatus"] == "Completed", job
    log = clients.log(TRAINING, "promises")
    arguments, seen, folder = json.loads(log.splitlines()[-1])
    assert dict(zip(arguments[::2], arguments[1::2], strict=True)) == {
        "--batch-size": "10",
        "--lr": "0.1",
        "--flag": "True",
        "--name": "resnet18",
        "--quoted": '"10"',
    }
    base = seen["SM_MODEL_DIR"].removesuffix("/model")
    assert folder == f"{base}/code"
    assert seen["OWN"] == f"{base}/x"
    assert seen["SM_CHANNEL_PHOTOS"] == f"{base}/input/data/photos"
    assert json.loads(seen["SM_CHANNELS"]) == ["photos"]
    assert json.loads(seen["SM_HPS"])["lr"] == 0.1
    assert seen["SM_HP_LR"] == "0.1"
    assert (seen["SM_CURRENT_HOST"], json.loads(seen["SM_HOSTS"])) == ("algo-1", ["algo-1"])
    assert seen["SM_OUTPUT_DATA_DIR"] == f"{base}/output/data"
    assert (seen["SM_USER_ENTRY_POINT"], seen["SM_MODULE_NAME"]) == ("train.py", "train")
    assert int(seen["SM_NUM_CPUS"]) >= 1
    assert seen["TRAINING_JOB_NAME"] == "promises"
    assert "sagemaker" not in " ".join(arguments)


def test_model_and_output_become_archives(clients: Clients) -> None:
    code = """
import os, pathlib
pathlib.Path(os.environ["SM_MODEL_DIR"], "w.txt").write_text("1")
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "report.html").write_text("<p>")
print("loss: 3.0"); print("loss: 2.5")
"""
    job = train(clients, "archives", code)
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"{OUT}/archives/output/model.tar.gz"
    for name, member in (("model", "./w.txt"), ("output", "./report.html")):
        with tarfile.open(fileobj=io.BytesIO(clients.get(f"{OUT}/archives/output/{name}.tar.gz"))) as archive:
            assert member in archive.getnames()
    assert [(one["MetricName"], one["Value"]) for one in job["FinalMetricDataList"]] == [("loss", 2.5)]
    assert job["TrainingStartTime"] <= job["TrainingEndTime"]


def test_an_uncompressed_model(clients: Clients) -> None:
    code = "import os, pathlib; pathlib.Path(os.environ['SM_MODEL_DIR'], 'w.txt').write_text('1')"
    output = {"OutputDataConfig": {"S3OutputPath": OUT, "CompressionType": "NONE"}}
    job = train(clients, "plain", code, output)
    assert clients.get(job["ModelArtifacts"]["S3ModelArtifacts"] + "w.txt") == b"1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os, pathlib, sys; pathlib.Path(os.environ['SM_OUTPUT_DIR'], 'failure').write_text('error: bad lr');"
            " sys.exit(1)",
            "AlgorithmError: error: bad lr, exit code: 1",
        ),
        ("raise ValueError('no photos')", 'ErrorMessage "ValueError: no photos"'),
        ("import os; os.kill(os.getpid(), 9)", "exit code: 137"),
        ("import sys; sys.exit(" + repr("x" * 3000) + ")", "exit code: 1"),
    ],
)
def test_failure_reasons(clients: Clients, code: str, reason: str) -> None:
    job = train(clients, f"failing-{abs(hash(code))}", code)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert job["FailureReason"].startswith("AlgorithmError: ")
    assert reason in job["FailureReason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sagemaker_program": "other.py"}, "other.py (sagemaker_program) is not in"),
        ({"sagemaker_submit_directory": f"s3://{BUCKET}/nowhere.tar.gz"}, "404"),
        ({"sagemaker_submit_directory": f"s3://{BUCKET}/no.tar.gz"}, "can not be unpacked"),
        ({"sagemaker_submit_directory": f"s3://{BUCKET}/evil.tar.gz"}, "can not be unpacked"),
        ({"sagemaker_submit_directory": "/tmp"}, "expected s3://"),
    ],
)
def test_a_bundle_that_can_not_be_run(clients: Clients, change: dict[str, str], words: str) -> None:
    clients.put("no.tar.gz", b"not an archive")
    clients.put("evil.tar.gz", bundle(**{"../../escaped.py": "x"}))
    job = train(clients, f"bundle-{abs(hash(str(change)))}", "pass", hyperparameters=change)
    assert job["TrainingJobStatus"] == "Failed"
    assert words in job["FailureReason"]


def test_requirements_that_are_not_met_are_named(clients: Clients) -> None:
    wanted = "# a comment\nboto3\nboto3>=9999  # too new\n"
    wanted += "no-such-thing==1.0 ; python_version > '3'\nskipped; python_version < '3'\n"
    job = train(clients, "requirements", "pass", files={"requirements.txt": wanted})
    assert "boto3>=9999 (installed: " in job["FailureReason"]
    assert "no-such-thing==1.0" in job["FailureReason"]
    assert "skipped" not in job["FailureReason"]


def test_debugger_configuration_reaches_smdebug_and_tensors_come_back(clients: Clients) -> None:
    code = """
import json, os, pathlib
config = json.loads(pathlib.Path(os.environ["SMDEBUG_CONFIG_FILE_PATH"]).read_text())
folder = pathlib.Path(config["LocalPath"])
assert not folder.exists()  # smdebug insists
folder.mkdir()
(folder / "claim.smd").write_text(config["HookParameters"]["save_interval"])
profiler = json.loads(pathlib.Path(os.environ["SMPROFILER_CONFIG_PATH"]).read_text())
place = pathlib.Path(profiler["ProfilingParameters"]["LocalPath"], "system")
place.mkdir(parents=True)
(place / "metrics.json").write_text("{}")
"""
    rule = {
        "RuleConfigurationName": "Overfit",
        "RuleEvaluatorImage": "i",
        "RuleParameters": {"rule_to_invoke": "Overfit"},
    }
    request = {
        "DebugHookConfig": {"S3OutputPath": OUT, "HookParameters": {"save_interval": "10"}},
        "DebugRuleConfigurations": [rule],
        "ProfilerConfig": {"S3OutputPath": OUT, "ProfilingIntervalInMilliseconds": 500},
    }
    job = train(clients, "debugged", code, request)
    assert job["TrainingJobStatus"] == "Completed", job
    assert clients.get(f"{OUT}/debugged/debug-output/claim.smd") == b"10"
    assert clients.get(f"{OUT}/debugged/profiler-output/system/metrics.json") == b"{}"
    assert job["DebugRuleEvaluationStatuses"][0]["RuleConfigurationName"] == "Overfit"


def test_checkpoints_come_and_go(clients: Clients) -> None:
    clients.put("checkpoints/epoch", "1")
    code = """
import pathlib, os
path = pathlib.Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints" / "epoch"
path.write_text(str(int(path.read_text()) + 1))
"""
    request = {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints"}}
    train(clients, "checkpoint-1", code, request)
    train(clients, "checkpoint-2", code, request)
    assert clients.get(f"s3://{BUCKET}/checkpoints/epoch") == b"3"


def test_checkpoints_are_kept_while_the_job_runs(clients: Clients) -> None:
    clients.put("running/epoch", "1")
    clients.put("running/untouched", "as it was")
    before = clients.s3.head_object(Bucket=BUCKET, Key="running/untouched")["LastModified"]
    # Written in place, whole only after a while, as torch.save does it.
    code = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[2])
epoch = int((folder / "epoch").read_text()) + 1
with open(folder / "epoch", "w") as file:
    for _ in range(60):
        time.sleep(0.02)
        file.write("0")
        file.flush()
    file.write(str(epoch))
time.sleep(60 if epoch < 3 else 0)
"""
    uri = clients.put("code/running.tar.gz", bundle(train=code))
    config = {"S3Uri": f"s3://{BUCKET}/running", "LocalPath": "/opt/ml/elsewhere"}
    full = {**training_request(uri, folder="../elsewhere"), "CheckpointConfig": config}  # from /opt/ml/code
    clients.sm.create_training_job(TrainingJobName="running-1", **full)
    seen = until(
        lambda: clients.get(f"s3://{BUCKET}/running/epoch"), lambda content: content not in (b"1", b""), timeout=30
    )
    assert seen == b"0" * 60 + b"2"  # never half of it
    assert clients.sm.describe_training_job(TrainingJobName="running-1")["TrainingJobStatus"] == "InProgress"
    assert clients.s3.head_object(Bucket=BUCKET, Key="running/untouched")["LastModified"] == before
    clients.sm.stop_training_job(TrainingJobName="running-1")
    clients.sm.create_training_job(TrainingJobName="running-2", **full)
    job = until(
        lambda: clients.sm.describe_training_job(TrainingJobName="running-2"),
        lambda job: job["TrainingJobStatus"] in ("Completed", "Failed"),
    )
    assert job["TrainingJobStatus"] == "Completed", job
    assert clients.get(f"s3://{BUCKET}/running/epoch") == b"0" * 60 + b"3"


# --- training on several instances

TWO = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}


def test_hosts_meet_share_the_keys_and_leave_one_model(clients: Clients) -> None:
    for n in range(3):
        clients.put(f"keys/{n}", str(n))
    code = """
import json, os, pathlib, socket, sys
host, hosts = os.environ["SM_CURRENT_HOST"], json.loads(os.environ["SM_HOSTS"])
address = os.environ["SM_MASTER_ADDR"], int(os.environ["SM_MASTER_PORT"])
if host == hosts[0]:  # they do run at the same time: one waits for the other
    with socket.create_server(address) as server:
        peer, _ = server.accept()
        heard = peer.recv(100).decode()
else:
    while True:
        try:
            peer = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            pass
    peer.sendall(host.encode())
    heard = "nobody"
for variable in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"):
    folder = pathlib.Path(os.environ[variable])
    (folder / host).mkdir()
    (folder / host / "keys").write_text(" ".join(sorted(os.listdir(os.environ["SM_CHANNEL_SHARDS"]))))
    (folder / "all").write_text(" ".join(sorted(os.listdir(os.environ["SM_CHANNEL_ALL"]))))
    (folder / "heard").write_text(heard)
print(f"loss: {hosts.index(host) + 1}.0 of {json.dumps(hosts)}")
"""
    sharded = channel("shards", f"s3://{BUCKET}/keys")
    sharded["DataSource"]["S3DataSource"]["S3DataDistributionType"] = "ShardedByS3Key"
    request = {"ResourceConfig": TWO, "InputDataConfig": [sharded, channel("all", f"s3://{BUCKET}/keys")]}
    job = train(clients, "hosts", code, request)
    assert job["TrainingJobStatus"] == "Completed", job
    for archive in ("model", "output"):
        with tarfile.open(fileobj=io.BytesIO(clients.get(f"{OUT}/hosts/output/{archive}.tar.gz"))) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            assert len(files) == len([name for name in tar.getnames() if tar.getmember(name).isfile()]) == 4
            texts = {name: file.read().decode() for name, file in files.items() if file}
        assert (texts["./algo-1/keys"], texts["./algo-2/keys"]) == ("0 2", "1")
        assert texts["./all"] == "0 1 2"
        assert texts["./heard"] == "algo-2"  # what algo-1 left
    streams = clients.logs.describe_log_streams(logGroupName=TRAINING, logStreamNamePrefix="hosts/")["logStreams"]
    assert [one["logStreamName"].split("/")[1][:7] for one in streams] == ["algo-1-", "algo-2-"]
    log = clients.log(TRAINING, "hosts")
    assert 'loss: 1.0 of ["algo-1", "algo-2"]' in log
    assert 'loss: 2.0 of ["algo-1", "algo-2"]' in log
    assert job["FinalMetricDataList"][0]["Value"] in (1.0, 2.0)


def test_a_failing_host_ends_the_job_and_is_the_one_heard(clients: Clients) -> None:
    code = """
import os, time
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    raise ValueError("no photos on algo-2")
time.sleep(120)
"""
    job = train(clients, "failing-host", code, {"ResourceConfig": TWO})
    assert job["TrainingJobStatus"] == "Failed"
    assert "ValueError: no photos on algo-2" in job["FailureReason"]
    assert job["TrainingEndTime"] - job["TrainingStartTime"] < datetime.timedelta(seconds=60)


def test_more_hosts_than_slots_and_an_uncompressed_model(clients: Clients) -> None:
    code = """
import os, pathlib
host = os.environ["SM_CURRENT_HOST"]
model = pathlib.Path(os.environ["SM_MODEL_DIR"])
(model / host).write_text(os.environ["OMP_NUM_THREADS"])
(model / "first").write_text(host)
(model.parent / "checkpoints" / f"of-{host}").write_text(host)
"""
    clients.put("shared/start", "")
    request = {
        "ResourceConfig": {**TWO, "InstanceCount": 3},
        "OutputDataConfig": {"S3OutputPath": OUT, "CompressionType": "NONE"},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/shared"},
    }
    job = train(clients, "three", code, request)
    assert job["TrainingJobStatus"] == "Completed", job
    assert clients.keys("out/three/output/model/") == ["algo-1", "algo-2", "algo-3", "first"]
    assert clients.get(f"{OUT}/three/output/model/first") == b"algo-1"
    assert clients.keys("shared/") == ["of-algo-1", "of-algo-2", "of-algo-3", "start"]


def test_stop_lets_the_script_save_its_model(clients: Clients) -> None:
    code = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path(os.environ["SM_MODEL_DIR"], "w.txt").write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("loss: 1.5", flush=True)
time.sleep(60)
"""
    uri = clients.put("code/saving.tar.gz", bundle(train=code))
    clients.sm.create_training_job(TrainingJobName="saving", **training_request(uri))
    # Its metrics can be seen while it runs.
    until(
        lambda: clients.sm.describe_training_job(TrainingJobName="saving"),
        lambda job: job.get("FinalMetricDataList", [{}])[0].get("Value") == 1.5,
    )
    clients.sm.stop_training_job(TrainingJobName="saving")
    job = until(
        lambda: clients.sm.describe_training_job(TrainingJobName="saving"),
        lambda job: job["TrainingJobStatus"] == "Stopped",
    )
    with tarfile.open(fileobj=io.BytesIO(clients.get(job["ModelArtifacts"]["S3ModelArtifacts"]))) as archive:
        assert "./w.txt" in archive.getnames()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            {
                "ResourceConfig": {
                    "InstanceGroups": [{"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "InstanceGroupName": "g"}],
                    "VolumeSizeInGB": 1,
                }
            },
            "InstanceGroups",
        ),
        (
            {
                "AlgorithmSpecification": {
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "x", "Regex": "("}],
                }
            },
            "Regex",
        ),
        ({"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/c", "LocalPath": "/tmp/c"}}, "LocalPath must lie under"),
    ],
)
def test_what_training_here_can_not_do(clients: Clients, request_: dict[str, Any], words: str) -> None:
    job = train(clients, f"cannot-{abs(hash(words))}", "pass", request_)
    assert job["TrainingJobStatus"] == "Failed"
    assert words in job["FailureReason"]
