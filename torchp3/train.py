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


def step(
    coefficients: Coefficients,
    x: Float[Tensor, "points"],
    y: Float[Tensor, "points"],
    learning_rate: Float[Tensor, ""],
) -> tuple[Coefficients, Float[Tensor, ""]]:
    """One update: the coefficients after it, and the loss before it."""
    value, gradients = loss_and_gradients(coefficients, x, y)
    return update(coefficients, gradients, learning_rate), value.clone()  # scan refuses what may be a view


def scan_steps(
    coefficients: Coefficients,
    x: Float[Tensor, "points"],
    y: Float[Tensor, "points"],
    learning_rates: Float[Tensor, "steps"],
) -> tuple[Coefficients, Float[Tensor, "steps"]]:
    """One update for each learning rate: the coefficients after the last, and the loss before each."""
    return scan(
        lambda coefficients, learning_rate: step(coefficients, x, y, learning_rate), coefficients, learning_rates
    )


@cache
def compiled_scan_steps() -> Any:
    """
    The same, compiled once a process for all numbers of points and steps.

    The C++ wrapper keeps Python out of the loop, which halves its time. Made on the first call, since `torch.compile`
    imports the compiler.
    """
    return torch.compile(
        scan_steps,
        fullgraph=True,
        dynamic=True,
        recompile_limit=32,  # each dtype and device, one step or more, points as many as steps or not
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
    compiled = compiled_scan_steps()

    def piece(
        coefficients: Coefficients, learning_rates: Float[np.ndarray, "steps"]
    ) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
        coefficients, losses = compiled(coefficients, x, y, torch.as_tensor(learning_rates, device=x.device))
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
