"""Several processes of one fit, on this machine's loopback address, which all end with the test that starts them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from comparisons.pages import ROOT
from p3.backends import BACKENDS, BackendName


class Ended(NamedTuple):
    """What became of a process."""

    code: int
    output: str
    errors: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environments(backend: BackendName, count: int) -> list[dict[str, str]]:
    """What tells each process of the others: for PyTorch what torchrun sets, for JAX what docs/devices.md says."""
    address, port = "127.0.0.1", str(free_port())
    common = os.environ | {"OMP_NUM_THREADS": "1", "NPROC": "1"}  # of which XLA reads the second
    if backend == "torch":
        common |= {"MASTER_ADDR": address, "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(count)}
        return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    # Which of the machine's addresses listens is JAX's own variable; it would be all of them.
    common |= {"JAX_COORDINATOR_ADDRESS": f"{address}:{port}", "JAX_COORDINATOR_BIND_ADDRESS": f"{address}:{port}"}
    return [common | {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)} for index in range(count)]


@contextmanager
def running(commands: Sequence[Sequence[str | Path]], environments: Sequence[dict[str, str]]) -> Iterator[list]:
    """Processes that run the commands at the repository's root; at the end they and their children are killed."""
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        yield started
    finally:
        for process in started:
            kill_session(process.pid)
            process.communicate()


def kill_session(leader: int) -> None:
    """Kill a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def ended(processes: Sequence[subprocess.Popen], timeout: float) -> list[Ended]:
    """What became of them; `subprocess.TimeoutExpired` if they do not end."""
    endings = []
    for process in processes:
        output, errors = process.communicate(timeout=timeout)
        endings.append(Ended(process.returncode, output, errors))
    return endings


def run_commands(backend: BackendName, arguments: Sequence[Sequence[str | Path]], timeout: float = 600) -> list[Ended]:
    """One command in each of several processes that are told of each other, with these arguments."""
    commands = [[sys.executable, "-m", BACKENDS[backend].package, *of_one] for of_one in arguments]
    with running(commands, environments(backend, len(commands))) as processes:
        return ended(processes, timeout)
