"""The training loop: gradient descent on the model's coefficients, compiled or eager."""

import warnings
from functools import cache, partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch._higher_order_ops import scan
from torch.fx.experimental.proxy_tensor import make_fx

from p3.data import make_points
from p3.result import FitResult
from p3.spec import TrainingSpec
from p3.training import EAGERLY, Piece, Progress, piece_lengths, train
from torchp3.device import describe_device, find_device
from torchp3.model import Coefficients, loss
from torchp3.optimizer import update


def loss_and_gradients(
    coefficients: Coefficients, x: Float[Tensor, "points"], y: Float[Tensor, "points"]
) -> tuple[Float[Tensor, ""], Coefficients]:
    """The loss, and its gradient with respect to each coefficient."""
    gradients, value = torch.func.grad_and_value(loss)(coefficients, x, y)
    return value, gradients


@cache
def compiled_scan_steps(dtype: torch.dtype, device: torch.device) -> Any:
    """
    One update for each learning rate, compiled once a process for all numbers of points and steps.

    The gradient is traced beforehand, so that it is the operator's own rule that is compiled: `torch.compile` would
    drop it. The C++ wrapper keeps Python out of the loop, which halves its time. Made on the first call, since
    `torch.compile` imports the compiler.
    """
    # Values do not matter; every tensor must be one of its own, and 0 or 1 points would be taken as fixed.
    x, y = (torch.ones(3, dtype=dtype, device=device) for _ in range(2))
    coefficients = {name: torch.ones((), dtype=dtype, device=device) for name in "abcd"}
    traced_loss_and_gradients = make_fx(loss_and_gradients, tracing_mode="symbolic")(coefficients, x, y)

    # Without annotations, which torch.compile cannot trace in a nested function. The result is as jaxp3's.
    def scan_steps(coefficients, x, y, learning_rates):
        def step(coefficients, learning_rate):
            value, gradients = traced_loss_and_gradients(coefficients, x, y)
            return update(coefficients, gradients, learning_rate), value.clone()  # scan refuses what may be a view

        return scan(step, coefficients, learning_rates)

    return torch.compile(
        scan_steps,
        fullgraph=True,
        dynamic=True,
        recompile_limit=32,  # one step or more, points as many as steps or not
        options={"cpp_wrapper": True},
    )


def compile_piece(
    spec: TrainingSpec, coefficients: Coefficients, x: Float[Tensor, "points"], y: Float[Tensor, "points"]
) -> Piece[Coefficients] | None:
    """The loop of a piece as one compiled program, or None, and a warning, where PyTorch cannot compile."""
    import torch._dynamo  # the compiler, which takes a second to load
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    if torch._dynamo.config.disable:
        warnings.warn(f"{EAGERLY}: TORCH_COMPILE_DISABLE is set", RuntimeWarning, stacklevel=3)
        return None
    scan_steps = compiled_scan_steps(x.dtype, x.device)

    def piece(
        coefficients: Coefficients, learning_rates: Float[np.ndarray, "steps"]
    ) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
        coefficients, losses = scan_steps(coefficients, x, y, torch.as_tensor(learning_rates, device=x.device))
        return coefficients, losses.cpu().numpy()

    try:
        # torch.compile compiles when it is first called: one program for a single step, and one for any more.
        for length in {min(length, 2) for length in piece_lengths(spec)}:
            piece(coefficients, np.zeros(length, spec.dtype))
    except InductorError as error:
        if not isinstance(error.inner_exception, (InvalidCxxCompiler, CppCompileError)):
            raise
        reason = str(error.inner_exception).partition("\n")[0]
        warnings.warn(f"{EAGERLY}: {reason}", RuntimeWarning, stacklevel=3)
        return None
    return piece


def eager_piece(
    x: Float[Tensor, "points"],
    y: Float[Tensor, "points"],
    coefficients: Coefficients,
    learning_rates: Float[np.ndarray, "steps"],
) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
    """The same loop in Python, one operation at a time, as the tutorial has it."""
    coefficients = {name: value.detach().clone().requires_grad_() for name, value in coefficients.items()}
    optimizer = torch.optim.SGD(coefficients.values())
    losses = []
    for learning_rate in learning_rates.tolist():
        optimizer.param_groups[0]["lr"] = learning_rate
        value = loss(coefficients, x, y)
        losses.append(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {name: value.detach() for name, value in coefficients.items()}, torch.stack(losses).cpu().numpy()


def fit(spec: TrainingSpec, progress: Progress | None = None) -> FitResult:
    """
    Fit the specification with PyTorch and torch.optim.

    Parameters
    ----------
    spec : what to fit
    progress : called as progress(step, loss) each log_every steps, and at the last

    Raises
    ------
    InputError
        The points are not finite in the specification's dtype, or there is no such device.
    DivergenceError
        A loss or a coefficient is not finite.

    Warns
    -----
    RuntimeWarning
        `jit = true`, and torch.compile is disabled or finds no working C++ compiler: the fit runs eagerly.
    """
    device = find_device(spec.device)
    # Gradients are on for this fit alone, whatever the caller has switched off.
    with torch.inference_mode(False), torch.enable_grad():
        points = make_points(spec)
        x, y = torch.as_tensor(points.x, device=device), torch.as_tensor(points.y, device=device)
        start = {
            name: torch.tensor(value, dtype=x.dtype, device=device) for name, value in spec.start.model_dump().items()
        }
        begin = perf_counter()
        piece = compile_piece(spec, start, x, y) if spec.jit else None
        compiled = piece is not None
        if piece is None:
            piece = partial(eager_piece, x, y)
            piece(start, np.zeros(1, spec.dtype))  # a step thrown away, on which libraries load
        compile_seconds = perf_counter() - begin
        trained = train(spec, piece, start, progress)
    return FitResult(
        backend="torch",
        spec=spec,
        device=describe_device(device),
        compiled=compiled,
        coefficients=trained.coefficients,
        losses=trained.losses,
        seconds={"compile": compile_seconds, "run": trained.seconds},
        versions={"torch": torch.__version__},
    )
