"""The training loop: gradient descent on the model's coefficients, compiled or eager."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from time import perf_counter

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Float64

from jaxp3.fitting.device import describe_device, find_device
from jaxp3.fitting.distributed import apart, devices_here, gather, lay_out, on_each, replicate, together, total, watched
from jaxp3.fitting.model import Coefficients, loss
from jaxp3.fitting.optimizer import State, initial_state, update
from jaxp3.fitting.schedule import learning_rates
from p3.errors import InputError
from p3.fitting.checkpoint import Checkpoint
from p3.fitting.data import make_shard
from p3.fitting.result import FitResult
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import (
    EAGERLY,
    Piece,
    Progress,
    Record,
    Steps,
    blank_steps,
    outset,
    piece_lengths,
    require_same,
    train,
)

Carry = tuple[Coefficients, State]
# x and y of a device's points; and, where it shares points with others, how many of these are points, and, of batches,
# the number of the first.
Shard = dict[str, Array]
Step = Callable[[Carry, Shard, dict[str, Array]], tuple[Carry, dict[str, Array]]]

BLOCK = 2048  # points that are summed in one go: of more, the roundings of float32 add up to more than an epsilon

# On a CPU XLA adds in the order of the points, one by one, unless it may choose the order, and then adds a vector of
# them at a time. Of the other liberties of its fast-math, those with NaN, infinities, divisions and functions are off.
# Vectors are as wide as the processor's, of which XLA would use the half.
COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_prefer_vector_width": "512",
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}


def loss_and_gradients(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    own: Bool[Array, "points"] | None = None,
) -> tuple[Float[Array, ""], Coefficients]:
    """The loss, and its gradient with respect to each coefficient; compiled, in one loop where XLA would make five."""
    if not isinstance(x, jax.core.Tracer):
        values, gradients = of_each_point(coefficients, x, y, own)
        value, *sums = jnp.stack([values, *gradients.values()]).sum(axis=1)
        return value, dict(zip(gradients, sums, strict=True))
    whole = len(x) // BLOCK * BLOCK
    rest = sum_over_points(coefficients, *jax.tree.map(lambda array: array[whole:], (x, y, own)))
    if not whole:
        return rest
    blocks = jax.tree.map(lambda array: array[:whole].reshape(-1, BLOCK), (x, y, own))
    of_blocks = jax.vmap(sum_over_points, in_axes=(None, 0, 0, 0))(coefficients, *blocks)
    all_points: tuple[Float[Array, ""], Coefficients] = jax.tree.map(
        lambda sums, last: sums.sum() + last, of_blocks, rest
    )
    return all_points


def of_each_point(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    own: Bool[Array, "points"] | None = None,
) -> tuple[Float[Array, "points"], dict[str, Float[Array, "points"]]]:
    """Each point's part of the loss, and of its gradients."""
    return jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0, 0, 0))(coefficients, x, y, own)


def sum_over_points(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    own: Bool[Array, "points"] | None = None,
) -> tuple[Float[Array, ""], Coefficients]:
    """The sums of that, five at once."""
    each = of_each_point(coefficients, x, y, own)
    zeros = jax.tree.map(lambda terms: jnp.zeros((), terms.dtype), each)
    sums: tuple[Float[Array, ""], Coefficients] = jax.lax.reduce(each, zeros, partial(jax.tree.map, jnp.add), (0,))
    return sums


def losses_and_gradients(
    coefficients: Coefficients,
    x: Float[Array, "points"],
    y: Float[Array, "points"],
    own: Bool[Array, "points"] | None = None,
) -> tuple[Float[Array, "fits"], Coefficients]:
    """The same of many fits at once."""
    return jax.vmap(loss_and_gradients, in_axes=(0, None, None, None))(coefficients, x, y, own)


def seen(
    shard: Shard, told: Mapping[str, Array]
) -> tuple[Float[Array, "seen"], Float[Array, "seen"], Bool[Array, "seen"] | None]:
    """The points that a step sees, and which of them are the device's own, where not all are."""
    x, y = shard["x"], shard["y"]
    if "batch" not in told:
        return x, y, jnp.arange(x.shape[0]) < shard["count"] if "count" in shard else None
    if "first" not in shard:
        return x[told["batch"]], y[told["batch"]], None
    places = told["batch"] - shard["first"]
    own = (places >= 0) & (places < shard["count"])
    places = jnp.where(own, places, 0)
    return x[places], y[places], own


def step(
    spec: TrainingSpec,
    carry: Carry,
    shard: Shard,
    told: dict[str, Array],
) -> tuple[Carry, dict[str, Array]]:
    """One step: the coefficients and the optimizer's state after it, and what is recorded of it, number by number."""
    coefficients, state = carry
    differentiate = losses_and_gradients if coefficients["a"].ndim else loss_and_gradients
    value, gradients = total(spec, *differentiate(apart(spec, coefficients), *seen(shard, told)))
    updated, state = update(spec.optimizer, coefficients, gradients, state, told["count"], told["learning_rate"])
    record = {"losses": value}
    if spec.trace:
        record |= {f"gradient {name}": gradients[name] for name in "abcd"}
        record |= {f"coefficient {name}": updated[name] for name in "abcd"}
    return (updated, state), record


def arrange(
    coefficients: Coefficients, steps: Mapping[str, Array], recorded: dict[str, Array]
) -> dict[str, Float[Array, "steps *coefficients"]]:
    """The record of some steps, from the coefficients before the first and what each step recorded."""
    if "gradient a" not in recorded:
        return recorded
    gradients, after = (
        jnp.stack([recorded[f"{what} {name}"] for name in "abcd"], axis=1) for what in ("gradient", "coefficient")
    )
    before = jnp.concatenate([jnp.stack(list(coefficients.values()))[None], after])[:-1]
    return {
        "losses": recorded["losses"],
        "learning_rate": steps["learning_rate"],
        "coefficients": before,
        "gradients": gradients,
        "updates": after - before,
    }


def scan_steps(step: Step, carry: Carry, shard: Shard, steps: dict[str, Array]) -> tuple[Carry, dict[str, Array]]:
    """Some steps in a row: the coefficients and the optimizer's state after the last, and what is recorded of each."""
    after, recorded = jax.lax.scan(
        lambda carry, told: step(carry, shard, told),
        carry,
        steps,
        unroll=4,  # a third faster than 1 with traces; more gains nothing
    )
    return after, arrange(carry[0], steps, recorded)


def compile_piece(spec: TrainingSpec, carry: Carry, shard: Shard) -> Piece[Carry] | None:
    """The loop of a piece as one compiled program a length, or None, and a warning, where JAX may not compile."""
    if jax.config.values["jax_disable_jit"]:
        warnings.warn(f"{EAGERLY}: jax_disable_jit is set", RuntimeWarning, stacklevel=4)
        return None
    compiled = {
        length: jax.jit(on_each(spec, partial(scan_steps, partial(step, spec))))
        .lower(carry, shard, blank_steps(spec, length))
        .compile(COMPILER_OPTIONS)
        for length in piece_lengths(spec)
    }

    def piece(carry: Carry, steps: Steps) -> tuple[Carry, Record]:
        carry, record = compiled[len(steps["count"])](carry, shard, steps)
        return jax.block_until_ready(carry), {name: np.asarray(values) for name, values in record.items()}

    return piece


def eager_piece(step: Step, shard: Shard, carry: Carry, steps: Steps) -> tuple[Carry, Record]:
    """The same loop in Python, one operation at a time."""
    told = {name: jnp.asarray(values) for name, values in steps.items()}
    before, records = carry[0], []
    for row in range(len(steps["count"])):
        carry, record = step(carry, shard, {name: values[row] for name, values in told.items()})
        records.append(record)
    recorded = {name: jnp.stack([each[name] for each in records]) for name in record}
    record = arrange(before, told, recorded)
    return jax.block_until_ready(carry), {name: np.asarray(values) for name, values in record.items()}


def make_piece(spec: TrainingSpec, carry: Carry, shard: Shard) -> tuple[Piece[Carry], bool, float]:
    """The loop of a piece, whether it is compiled, and the seconds that it took to compile, or to load libraries."""
    begin = perf_counter()
    piece = compile_piece(spec, carry, shard) if spec.jit else None
    compiled = piece is not None
    if len(set(gather(spec, compiled))) > 1:  # they would be a collective apart, by the step thrown away
        raise InputError(
            "of the processes some compile the loop and some cannot; have all compile, or give jit = false"
        )
    if piece is None:
        piece = partial(eager_piece, on_each(spec, partial(step, spec)), shard)
        piece(carry, blank_steps(spec, 1))  # a step thrown away, on which libraries load
    return piece, compiled, perf_counter() - begin


def to_floats(carry: Carry) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The coefficients and the optimizer's state as numbers."""
    coefficients, state = jax.tree.map(float, carry)
    return coefficients, state


def place(spec: TrainingSpec) -> Shard:
    """The points on the device; where devices share them, on each its part."""
    return lay_out(spec, {number: make_shard(spec, number) for number in devices_here(spec)})


def place_coefficients(
    spec: TrainingSpec, coefficients: Mapping[str, float | Float64[np.ndarray, "fits"]]
) -> Coefficients:
    """The coefficients on the device."""
    return {name: jnp.asarray(value, spec.dtype) for name, value in coefficients.items()}


def fit(
    spec: TrainingSpec, progress: Progress | None = None, checkpoint: str | PathLike[str] | Checkpoint | None = None
) -> FitResult:
    """
    Fit the specification with JAX and optax.

    Parameters
    ----------
    spec : what to fit
    progress : called as progress(step, loss) each log_every steps, and at the last
    checkpoint : a new directory to save each of these pieces in; or a `Checkpoint`, of a run that goes on if it is to

    Where devices share the points, each of their processes calls this alike, with directories that all of them see, and
    has the same result; the first one alone saves.

    Raises
    ------
    InputError
        The points are not finite in the specification's dtype; there is no such device, or not as many; or the
        checkpoint is of another specification, or not whole.
    DivergenceError
        A loss or a coefficient is not finite.
    LostProcessError
        Of several processes one has ended, or has not answered for as long as they were told to wait when they were
        connected; the commands tell them `p3.fitting.training.PATIENCE` seconds.

    Warns
    -----
    RuntimeWarning
        `jit = true`, and jax_disable_jit is set: the fit runs eagerly.
    """
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    device = find_device(spec.device)
    # float64 is switched on for this fit alone: the flag is the thread's while the context lasts.
    with watched(spec), jax.enable_x64(spec.dtype == "float64"), jax.default_device(device):
        saved = together(spec, lambda: checkpoint.read(spec) if checkpoint is not None else None)
        require_same(gather(spec, together(spec, lambda: outset(spec, checkpoint, saved))))
        here = devices_here(spec)
        shard = together(spec, lambda: place(spec))
        written = checkpoint if 0 in here else None  # by one process
        together(spec, lambda: written.begin(spec) if written is not None else None)
        start = place_coefficients(spec, spec.start.model_dump())
        carry = start, initial_state(spec.optimizer, start)
        if saved is not None:
            state = {name: place_coefficients(spec, values) for name, values in saved.state.items()}
            carry = place_coefficients(spec, saved.coefficients), state
        carry = replicate(spec, carry)
        piece, compiled, compile_seconds = make_piece(spec, carry, shard)
        trained = train(spec, piece, carry, learning_rates(spec), to_floats, progress, written, saved)
    return FitResult(
        backend="jax",
        spec=spec,
        device=describe_device(device),
        compiled=compiled,
        coefficients=trained.coefficients,
        losses=trained.record["losses"],
        traces=trained.traces,
        seconds={"compile": compile_seconds, "run": trained.seconds},
        versions={"jax": jax.__version__, "jaxlib": jaxlib.version.__version__, "optax": optax.__version__},
    )
