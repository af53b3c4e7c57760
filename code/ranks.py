"""Training on several hosts or GPUs: PyTorch's DistributedDataParallel, a process (rank) a GPU or, without, a host.

What torchrun does on a command line is done here in the job itself, for whether all of a network is trained is known
only when the job runs: `launch` starts this host's ranks, which are the same script, and each of them calls `join`.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from failures import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

Value = TypeVar("Value")

PORT = 29400  # of the first host, where the ranks find one another
TIMEOUT = timedelta(minutes=30)  # for one exchange: rank 0 trains the head first, and the others wait for it
LOST_SECONDS = 5  # to wait when others are gone: if one of them was on this host, its launcher ends this rank meanwhile
RENDEZVOUS_SECONDS = 900  # hosts of one job do not start at the same moment


@dataclass(frozen=True)
class Layout:
    """The hosts of this job, as SageMaker names them, and the processes each of them runs."""

    hosts: tuple[str, ...]
    current: str
    processes: int

    @property
    def is_first(self) -> bool:
        """Whether this is the first host."""
        return self.current == self.hosts[0]

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return len(self.hosts) * self.processes > 1


def layout() -> Layout:
    """From SM_HOSTS, SM_CURRENT_HOST and SM_NUM_GPUS; one process where nothing is set.

    Raises:
        UserError: the host is not among the hosts.
    """
    hosts = tuple(sorted(json.loads(os.environ.get("SM_HOSTS", '["algo-1"]')), key=_natural))
    current = os.environ.get("SM_CURRENT_HOST", hosts[0])
    if current not in hosts:
        raise UserError(f"SM_CURRENT_HOST is {current!r}, but SM_HOSTS has {', '.join(hosts)}")
    gpus = os.environ.get("SM_NUM_GPUS", "")
    return Layout(hosts, current, max(1, int(gpus)) if gpus.isdigit() else 1)


def _natural(host: str) -> tuple[str, int, str]:
    """algo-2 before algo-10."""
    name, _, number = host.rpartition("-")
    return (name, int(number), host) if number.isdigit() else (host, 0, host)


def is_rank() -> bool:
    """Whether `launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(hosts: Layout, script: str, arguments: list[str]) -> None:
    """Run the ranks of this host to their end.

    Raises:
        UserError: one of them failed, or the other hosts were not found.
        SystemExit: told to stop; so are the ranks.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    address = os.environ.get("SM_MASTER_ADDR") or hosts.hosts[0]
    endpoint = f"{address}:{os.environ.get('SM_MASTER_PORT') or PORT}"
    several = len(hosts.hosts) > 1
    if several and (interface := os.environ.get("SM_NETWORK_INTERFACE_NAME")):
        for library in ("NCCL", "GLOO"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    if hosts.processes > 1:  # else each would take all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // hosts.processes)))
    config = LaunchConfig(
        min_nodes=len(hosts.hosts),
        max_nodes=len(hosts.hosts),
        nproc_per_node=hosts.processes,
        run_id=os.environ.get("TRAINING_JOB_NAME", "train"),
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=endpoint if several else "localhost:0",
        rdzv_configs={"rank": hosts.hosts.index(hosts.current), "timeout": RENDEZVOUS_SECONDS} if several else {},
        local_addr=None if several else "localhost",
        max_restarts=0,  # SageMaker restarts jobs, and the checkpoint is there
        monitor_interval=0.2,
    )
    print(f"{len(hosts.hosts)} hosts with {hosts.processes} processes each; this is {hosts.current}", flush=True)
    try:
        elastic_launch(config, sys.executable)(script, *arguments)
    except SignalException as stop:
        sys.exit(128 + int(stop.sigval))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # it has said why itself, in the log and in the job's reason
            raise UserError(f"rank {rank} failed with exit code {failure.exitcode}; {_reason()}") from None
        name = signal.Signals(-failure.exitcode).name
        hint = " (what running out of memory looks like)" if name == "SIGKILL" else ""
        raise UserError(f"rank {rank} was ended by {name}{hint}: training stopped") from None
    except (RuntimeError, TimeoutError) as error:  # torch's errors of the rendezvous
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the {len(hosts.hosts)} hosts did not meet at {endpoint}: {reason}") from error


def _reason() -> str:
    """What the rank that failed wrote as the job's reason."""
    try:
        path = os.path.join(os.environ.get("SM_OUTPUT_DIR", "/opt/ml/output"), "failure")  # noqa: PTH118
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.readline().strip()
    except OSError:
        return "its log says why"


class World:
    """One process that does everything; what `Group` is for several."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1

    @property
    def device(self) -> "torch.device":
        """Where this rank computes."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0: the one that trains the head, and writes."""
        return self.rank == 0

    @property
    def is_first_of_host(self) -> bool:
        """Whether this is the first rank of its host."""
        return self.local_rank == 0

    def wrap(self, network: "nn.Module") -> "nn.Module":
        """The network whose gradients are means over all ranks."""
        return network

    def from_first(self, value: Value) -> Value:
        """Rank 0's value, on every rank: tensors, and plain values."""
        return value

    def total(self, *values: float) -> list[float]:
        """Sums over all ranks."""
        return list(values)


class Group(World):
    """This process as one rank of several."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank, self.local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def device(self) -> "torch.device":
        """A GPU a rank of the host."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def wrap(self, network: "nn.Module") -> "nn.Module":
        """With DistributedDataParallel; buffers are the same everywhere, and stay as they are."""
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.local_rank] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices, broadcast_buffers=False)

    def from_first(self, value: Value) -> Value:
        """By broadcast."""
        import torch.distributed

        box: list[Any] = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        received: Value = box[0]
        return received

    def total(self, *values: float) -> list[float]:
        """By all-reduce, in double precision."""
        import torch
        import torch.distributed

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed


@contextmanager
def join() -> Iterator[World]:
    """The group of ranks, if `launch` started this process; else a world of one.

    Raises:
        UserError: another rank is gone.
    """
    if not is_rank():
        yield World()
        return
    import torch
    import torch.distributed

    _end_with(os.getppid())
    group = Group()
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    if not group.is_first:  # one rank speaks, or every metric would be there twice; errors go to stderr
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
        yield group
        torch.distributed.barrier()  # until rank 0 has packed the model: the first host keeps the store of all
        torch.distributed.destroy_process_group()
    except RuntimeError as error:
        # The first rank to fail has a reason of its own; what the others see is a connection that breaks.
        text = " ".join(str(error).split())
        if isinstance(error, torch.distributed.DistError) or any(
            word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
        ):
            time.sleep(LOST_SECONDS)
            raise UserError(f"rank {group.rank} of {group.size} lost the others ({text[:150]})") from error
        raise


def _end_with(parent: int) -> None:
    """End this process when its launcher is gone, even by SIGKILL: ranks lead process groups of their own."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
