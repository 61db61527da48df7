"""The training loop: gradient descent on the model's coefficients, compiled or eager."""

import warnings
from functools import partial
from time import perf_counter

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from jaxp3.device import describe_device, find_device
from jaxp3.model import Coefficients, loss
from jaxp3.optimizer import update
from p3.data import make_points
from p3.result import FitResult
from p3.spec import TrainingSpec
from p3.training import EAGERLY, Piece, Progress, piece_lengths, train


def loss_and_gradients(
    coefficients: Coefficients, x: Float[Array, "points"], y: Float[Array, "points"]
) -> tuple[Float[Array, ""], Coefficients]:
    """
    `jax.value_and_grad(loss)`, as a sum over the points of each point's own loss and gradients.

    XLA turns each of the five sums into kernels of its own, and at 2000 points their number is what a step costs;
    five rows summed at once take half the time.
    """
    values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0, 0))(coefficients, x, y)
    value, *sums = jnp.stack([values, *gradients.values()]).sum(axis=1)
    return value, dict(zip(gradients, sums, strict=True))


def step(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    learning_rate: Float[Array, ""],
) -> tuple[Coefficients, Float[Array, ""]]:
    """One update: the coefficients after it, and the loss before it."""
    value, gradients = loss_and_gradients(coefficients, x, y)
    return update(coefficients, gradients, learning_rate), value


def scan_steps(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    learning_rates: Float[Array, "steps"],
) -> tuple[Coefficients, Float[Array, "steps"]]:
    """One update for each learning rate: the coefficients after the last, and the loss before each."""
    return jax.lax.scan(
        lambda coefficients, learning_rate: step(coefficients, x, y, learning_rate),
        coefficients,
        learning_rates,
        unroll=4,  # a tenth faster than 1; more gains nothing
    )


def compile_piece(
    spec: TrainingSpec, coefficients: Coefficients, x: Float[Array, "points"], y: Float[Array, "points"]
) -> Piece[Coefficients] | None:
    """The loop of a piece as one compiled program a length, or None, and a warning, where JAX may not compile."""
    if jax.config.jax_disable_jit:
        warnings.warn(f"{EAGERLY}: jax_disable_jit is set", RuntimeWarning, stacklevel=3)
        return None
    compiled = {
        length: jax.jit(scan_steps).lower(coefficients, x, y, jnp.empty(length, x.dtype)).compile()
        for length in piece_lengths(spec)
    }

    def piece(
        coefficients: Coefficients, learning_rates: Float[np.ndarray, "steps"]
    ) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
        coefficients, losses = compiled[len(learning_rates)](coefficients, x, y, learning_rates)
        return jax.block_until_ready(coefficients), np.asarray(losses)

    return piece


def eager_piece(
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    coefficients: Coefficients,
    learning_rates: Float[np.ndarray, "steps"],
) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
    """The same loop in Python, one operation at a time."""
    losses = []
    for learning_rate in jnp.asarray(learning_rates):
        coefficients, value = step(coefficients, x, y, learning_rate)
        losses.append(value)
    return jax.block_until_ready(coefficients), np.asarray(jnp.stack(losses))


def fit(spec: TrainingSpec, progress: Progress | None = None) -> FitResult:
    """
    Fit the specification with JAX and optax.

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
        `jit = true`, and jax_disable_jit is set: the fit runs eagerly.
    """
    device = find_device(spec.device)
    # float64 is switched on for this fit alone: the flag is the thread's while the context lasts.
    with jax.enable_x64(spec.dtype == "float64"), jax.default_device(device):
        points = make_points(spec)
        x, y = jnp.asarray(points.x), jnp.asarray(points.y)
        start = {name: jnp.asarray(value, x.dtype) for name, value in spec.start.model_dump().items()}
        begin = perf_counter()
        piece = compile_piece(spec, start, x, y) if spec.jit else None
        compiled = piece is not None
        if piece is None:
            piece = partial(eager_piece, x, y)
            piece(start, np.zeros(1, spec.dtype))  # a step thrown away, on which libraries load
        compile_seconds = perf_counter() - begin
        trained = train(spec, piece, start, progress)
    return FitResult(
        backend="jax",
        spec=spec,
        device=describe_device(device),
        compiled=compiled,
        coefficients=trained.coefficients,
        losses=trained.losses,
        seconds={"compile": compile_seconds, "run": trained.seconds},
        versions={"jax": jax.__version__, "jaxlib": jaxlib.__version__, "optax": optax.__version__},
    )
