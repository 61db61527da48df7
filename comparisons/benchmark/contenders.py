"""What the benchmark races: this project's fits and operators, what a user would run instead, and two limits."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxp3
import torchp3
from comparisons import tutorial
from p3 import TrainingSpec
from p3.fitting.data import make_points
from p3.fitting.starts import random_starts
from torchp3.fitting.program import scratch

HERE = Path(__file__).parent

# Does something, and gives the seconds that it took and its answer; the first call compiles.
Contender = Callable[[], tuple[float, Any]]


def timed(f: Callable[[], Any]) -> Contender:
    """A function, which must return when all is computed."""

    def run() -> tuple[float, Any]:
        begin = perf_counter()
        answer = f()
        return perf_counter() - begin, answer

    return run


@cache
def limits() -> ctypes.CDLL | None:
    """limits.c, compiled for this machine; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = scratch() / "limits.so"
    # What vectors need of -ffast-math, which itself would have the whole process take subnormal numbers for 0.
    order = ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"]
    options = ["-O3", "-march=native", *order, "-shared", "-fPIC"]
    subprocess.run([compiler, *options, "-o", library, HERE / "limits.c"], check=True)
    return ctypes.CDLL(library)


def address(array: np.ndarray) -> ctypes.c_void_p:
    """For C."""
    return ctypes.c_void_p(array.ctypes.data)


# --- the fit


def fits(points: int, steps: int) -> dict[str, Contender]:
    """Fits of the tutorial's problem in float32, the loop alone; each answers with a, b, c and d."""
    spec = TrainingSpec(steps=steps, log_every=2000).replace({"data": {"points": points}})
    rate = spec.optimizer.learning_rate
    # The tutorial's rate is for a sum over 2000 points.
    spec = spec.replace({"optimizer": {"learning_rate": rate * 2000 / points}})
    rate = spec.optimizer.learning_rate
    start = list(spec.start.model_dump().values())
    x, y = make_points(spec)
    on_torch = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def fit(package: Any, spec: TrainingSpec) -> Contender:
        def run() -> tuple[float, Any]:
            result = package.fit(spec)
            return result.seconds["run"], list(result.coefficients.values())

        return run

    def numpy_loop() -> list[float]:
        a, b, c, d = map(np.float32, start)
        for _ in range(steps):
            z = c + d * x
            squares = z * z
            value = z * (np.float32(2.5) * squares - np.float32(1.5))
            twice = 2 * (a + b * value - y)
            to_z = twice * b * (np.float32(7.5) * squares - np.float32(1.5))
            a, b, c, d = (
                coefficient - np.float32(rate) * gradient
                for coefficient, gradient in zip(
                    (a, b, c, d), (twice.sum(), twice @ value, to_z.sum(), to_z @ x), strict=True
                )
            )
        return [float(coefficient) for coefficient in (a, b, c, d)]

    contenders = {
        "tutorial's loop": timed(lambda: tutorial.train(*on_torch, steps, rate, lambda *_: None)),
        "torch.compile of one step": timed(compiled_step(on_torch, start, steps, rate)),
        "torchp3, eager": fit(torchp3, spec.replace({"jit": False})),
        "torchp3": fit(torchp3, spec),
        "torchp3, no traces": fit(torchp3, spec.replace({"trace": False})),
        "plain lax.scan": timed(plain_scan(x, y, start, steps, rate)),
        "jaxp3": fit(jaxp3, spec),
        "jaxp3, no traces": fit(jaxp3, spec.replace({"trace": False})),
        "NumPy": timed(numpy_loop),
    }
    library = limits()
    if library is not None:

        def c_loop() -> list[float]:
            coefficients, losses = np.array(start, np.float32), np.empty(steps, np.float32)
            library.fit(
                address(x),
                address(y),
                ctypes.c_size_t(points),
                ctypes.c_size_t(steps),
                ctypes.c_float(rate),
                address(coefficients),
                address(losses),
            )
            return coefficients.tolist()

        contenders["C"] = timed(c_loop)
    return contenders


def compiled_step(
    points: tuple[torch.Tensor, torch.Tensor], start: list[float], steps: int, rate: float
) -> Callable[[], list[float]]:
    """What torch.compile is usually put around: a step, in a loop of Python's."""
    x, y = points

    def step(a: Any, b: Any, c: Any, d: Any) -> tuple[torch.Tensor, ...]:
        def loss(a: Any, b: Any, c: Any, d: Any) -> torch.Tensor:
            return ((a + b * torchp3.legendre_p3(c + d * x) - y) ** 2).sum()

        gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3))(a, b, c, d)
        return tuple(value - rate * gradient for value, gradient in zip((a, b, c, d), gradients, strict=True))

    compiled = torch.compile(step, fullgraph=True)

    def run() -> list[float]:
        values: tuple[torch.Tensor, ...] = tuple(torch.tensor(value) for value in start)
        for _ in range(steps):
            values = compiled(*values)
        return [value.item() for value in values]

    return run


def plain_scan(x: np.ndarray, y: np.ndarray, start: list[float], steps: int, rate: float) -> Callable[[], list[float]]:
    """What one writes first in JAX: value_and_grad of the loss in a scan, compiled."""
    on_jax = jnp.asarray(x), jnp.asarray(y)

    def loss(values: Any) -> jax.Array:
        a, b, c, d = values
        return jnp.sum((a + b * jaxp3.legendre_p3(c + d * on_jax[0]) - on_jax[1]) ** 2)

    def step(values: Any, _: None) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(values)
        return tuple(v - rate * g for v, g in zip(values, gradients, strict=True)), value

    compiled = jax.jit(lambda values: jax.lax.scan(step, values, length=steps))

    def run() -> list[float]:
        values, _ = jax.block_until_ready(compiled(tuple(map(jnp.float32, start))))
        return [float(value) for value in values]

    return run


# --- the operator


def operators(points: int, dtype: str = "float32") -> dict[str, Contender]:
    """P3 and then its vjp on fresh outputs; each answers with the value and the gradient."""
    x = np.linspace(-2, 2, points, dtype=np.float32)
    cotangent = np.linspace(1, 2, points, dtype=np.float32)
    leaf, cotangent_torch = (torch.from_numpy(array.copy()).to(getattr(torch, dtype)) for array in (x, cotangent))
    leaf.requires_grad_()
    x_jax, cotangent_jax = jax.block_until_ready((jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype)))

    def by_autograd(f: Callable[[torch.Tensor], torch.Tensor]) -> Contender:
        def both() -> tuple[torch.Tensor, torch.Tensor]:
            value = f(leaf)
            return value.detach(), torch.autograd.grad(value, leaf, cotangent_torch)[0]

        return timed(both)

    def by_jax(f: Callable[[jax.Array], jax.Array]) -> Contender:
        def both(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, vjp = jax.vjp(f, x)
            return value, vjp(cotangent)[0]

        compiled = jax.jit(both)
        return timed(lambda: jax.block_until_ready(compiled(x_jax, cotangent_jax)))

    def donated() -> Contender:
        """The gradient is written where the cotangent was."""

        def both(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
            value, vjp = jax.vjp(jaxp3.legendre_p3, x)
            return value, vjp(cotangent)[0]

        compiled = jax.jit(both, donate_argnums=1)

        def run() -> tuple[float, Any]:
            given = jax.block_until_ready(jnp.array(cotangent_jax))
            begin = perf_counter()
            answer = jax.block_until_ready(compiled(x_jax, given))
            return perf_counter() - begin, answer

        return run

    def in_numpy() -> tuple[np.ndarray, np.ndarray]:
        squares = x * x
        return x * (np.float32(2.5) * squares - np.float32(1.5)), cotangent * (
            np.float32(7.5) * squares - np.float32(1.5)
        )

    copied = torch.empty_like(cotangent_torch)
    half = copied[: points // 2]

    def copies() -> None:
        """Of as many bytes as must be read and written: x and P3(x), then x, the cotangent and the gradient."""
        copied.copy_(cotangent_torch)
        copied.copy_(cotangent_torch)
        half.copy_(cotangent_torch[: points // 2])

    contenders = {
        "tutorial's operator": by_autograd(tutorial.LegendrePolynomial3.apply),
        "plain autograd": by_autograd(lambda x: 0.5 * (5 * x**3 - 3 * x)),
        "torchp3, eager": by_autograd(torchp3.legendre_p3),
        "torchp3, compiled": by_autograd(torch.compile(torchp3.legendre_p3, fullgraph=True, dynamic=True)),
        "plain jax.grad, jitted": by_jax(lambda x: 0.5 * (5 * x**3 - 3 * x)),
        "jaxp3, jitted": by_jax(jaxp3.legendre_p3),
        "jaxp3, jitted, cotangent donated": donated(),
    }
    library = limits()
    if dtype == "float32":
        contenders["NumPy"] = timed(in_numpy)
    if dtype == "float32" and library is not None:

        def in_c() -> tuple[np.ndarray, np.ndarray]:
            value, gradient = np.empty_like(x), np.empty_like(x)
            library.forward(address(x), address(value), ctypes.c_size_t(points))
            library.backward(address(x), address(cotangent), address(gradient), ctypes.c_size_t(points))
            return value, gradient

        contenders["C"] = timed(in_c)
    contenders["2.5 copies"] = timed(copies)
    return contenders


def peak_memory(name: str, points: int) -> float:
    """The most memory that an operator takes beside x and the cotangent, in arrays of x's size; on Linux."""

    def resident(field: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])

    found = operators(points)  # all of them, since what is let go of here would make room
    answer = found[name]()  # what is loaded, or compiled, on first use is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    found[name]()
    peak = resident("VmHWM")
    del answer  # which was kept, so that its memory was not used again
    return (peak - before) / (4 * points)


# --- many fits


def many_fits(starts: int, alone: int, steps: int) -> dict[str, Contender]:
    """Seconds a fit, of many starts at once and of a loop over some of them; each answers with the first fits."""
    spec = TrainingSpec(steps=steps, log_every=steps)
    given = random_starts(spec, starts, 0.1)

    def at_once(package: Any) -> Contender:
        def run() -> tuple[float, Any]:
            begin = perf_counter()
            result = package.fit_starts(spec, given)
            return (perf_counter() - begin) / starts, result.coefficients[:alone]

        return run

    def in_a_loop(package: Any) -> Contender:
        def run() -> tuple[float, Any]:
            begin = perf_counter()
            results = [
                package.fit(spec.replace({"trace": False, "start": dict(zip("abcd", row, strict=True))}))
                for row in given[:alone].tolist()
            ]
            seconds = (perf_counter() - begin) / alone
            return seconds, [list(result.coefficients.values()) for result in results]

        return run

    return {
        "torchp3.fit in a loop": in_a_loop(torchp3),
        "torchp3.fit_starts": at_once(torchp3),
        "jaxp3.fit in a loop": in_a_loop(jaxp3),
        "jaxp3.fit_starts": at_once(jaxp3),
    }


# --- whole processes


def processes() -> dict[str, Contender]:
    """From the command to the printed result; each answers with b and d."""

    def command(*arguments: str, empty_caches: bool = False) -> Contender:
        caches = tempfile.mkdtemp(dir=scratch())

        def run() -> tuple[float, Any]:
            folder = tempfile.mkdtemp(dir=caches) if empty_caches else caches
            begin = perf_counter()
            finished = subprocess.run(
                [sys.executable, *arguments],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"TORCHP3_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder},
            )
            seconds = perf_counter() - begin
            if not finished.stdout:  # of an import
                return seconds, None
            words = finished.stdout.splitlines()[-1].replace("P3(", "").split()
            return seconds, [float(words[5]), float(words[9])]

        return run

    return {
        "tutorial's script": command(str(tutorial.__file__)),
        "torchp3 --no-jit": command("-m", "torchp3", "--no-jit"),
        "torchp3, empty caches": command("-m", "torchp3", empty_caches=True),
        "torchp3, the next process": command("-m", "torchp3"),
        "jaxp3": command("-m", "jaxp3"),
        **{f"import {package}": command("-c", f"import {package}") for package in ("torch", "torchp3", "jax", "jaxp3")},
        "torchp3.legendre_p3": command("-c", "import torchp3; torchp3.legendre_p3"),
        "jaxp3.legendre_p3": command("-c", "import jaxp3; jaxp3.legendre_p3"),
    }
