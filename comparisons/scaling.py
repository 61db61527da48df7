"""
What a second process gains, and what the sum over processes costs, in one run.

`python comparisons/scaling.py --readme README.md` measures, writes scaling.json and scaling.png beside itself, and the
README's part. Two processes with a core each take turns at each number of points: one alone, both on a fit of their
own at the same time, and both on one fit whose points they share. They have a memory bus in common, so that what
sharing costs is the difference from two fits side by side.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from processes import ended, environments, running

from p3.backends import BACKENDS, BackendName, load
from p3.spec import TrainingSpec

HERE = Path(__file__).parent
PIECES = 6  # of which the first is not counted


def step_seconds(fit: Callable[..., Any], spec: TrainingSpec) -> float:
    """The seconds of a step: the median over pieces of a fit."""
    ends: list[float] = []
    fit(spec, lambda step, loss: ends.append(perf_counter()))
    return float(np.median(np.diff(ends))) / spec.log_every


def spec_of(points: int, devices: int) -> TrainingSpec:
    """A fit of so many points, with pieces of a tenth of a second or so."""
    length = int(np.clip(2 * 10**7 // points, 3, 100))
    spec = TrainingSpec(steps=PIECES * length, log_every=length, trace=False, devices=devices)
    return spec.replace({"data": {"points": points}, "optimizer": {"learning_rate": 1e-2 / points}})


def collective_seconds(backend: BackendName, numbers: int, turns: int) -> float:
    """The seconds of a sum of so many float32 numbers over all processes, called from Python."""
    if backend == "torch":
        import torch

        values = torch.ones(numbers)
        add = lambda: torch.distributed.all_reduce(values)  # noqa: E731
    else:
        import jax
        from jax.sharding import PartitionSpec

        from jaxp3.distributed import AXIS, mesh

        values = np.ones(numbers, np.float32)
        spec = PartitionSpec()
        add_up = jax.shard_map(
            lambda values: jax.lax.psum(jax.lax.pcast(values, AXIS, to="varying"), AXIS),
            mesh=mesh(TrainingSpec(devices=2)),
            in_specs=spec,
            out_specs=spec,
        )
        compiled = jax.jit(add_up)
        add = lambda: jax.block_until_ready(compiled(values))  # noqa: E731
    add()
    seconds = []
    for _ in range(turns):
        begin = perf_counter()
        add()
        seconds.append(perf_counter() - begin)
    return float(np.median(seconds))


def measure(backend: BackendName, sizes: list[int], turns: int) -> dict[str, Any]:
    """In each of two processes: what steps take in them, number of points by number of points."""
    package = load(backend)
    distributed = package.distributed
    both = TrainingSpec(devices=2)
    with distributed.joined(both):
        is_first = distributed.process_index() == 0

        def met(seconds: Callable[[], float]) -> float:
            distributed.gather(both, None)
            return max(distributed.gather(both, seconds()))

        taken: dict[str, dict[int, list[float]]] = {}
        for points in sizes:
            for _ in range(turns):
                half = points // 2
                for name, run in {
                    "alone": lambda n=points: step_seconds(package.fit, spec_of(n, 1)) if is_first else 0.0,
                    "half alone": lambda n=half: step_seconds(package.fit, spec_of(n, 1)) if is_first else 0.0,
                    "halves side by side": lambda n=half: step_seconds(package.fit, spec_of(n, 1)),
                    "shared": lambda n=points: step_seconds(package.fit, spec_of(n, 2)),
                }.items():
                    taken.setdefault(name, {}).setdefault(points, []).append(met(run))
                    print(perf_counter(), points, name, taken[name][points][-1], file=sys.stderr, flush=True)
        numbers = {5: 1000, 10**6: 30}
        collective = {n: met(lambda n=n, k=k: collective_seconds(backend, n, k)) for n, k in numbers.items()}
    return {"steps": taken, "collective": collective}


def in_two_processes(backend: BackendName, sizes: list[int], turns: int) -> dict[str, Any]:
    """The same, in two new processes with a core each."""
    command = [sys.executable, __file__, "--worker", backend, json.dumps(sizes), str(turns)]
    with running([command] * 2, environments(backend, 2)) as processes:
        first, second = ended(processes, 1800)
    assert first.code == second.code == 0, first.errors + second.errors
    print(first.errors, file=sys.stderr)
    return json.loads(first.output.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        index = int(os.environ.get("RANK", os.environ.get("JAX_PROCESS_ID", "0")))
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
        print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))), flush=True)
    else:
        for b in sys.argv[3:] or BACKENDS:
            print(json.dumps({b: in_two_processes(b, json.loads(sys.argv[1]), int(sys.argv[2]))}))
