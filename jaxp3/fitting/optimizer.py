"""The update rules of the specification, from `optax`."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from jaxp3.fitting.model import Coefficients
from p3.fitting import optimizers
from p3.fitting.optimizers import Optimizer

State = dict[str, Coefficients]


def initial_state(optimizer: Optimizer, coefficients: Coefficients) -> State:
    """What the rule remembers of each coefficient, before the first step."""
    return {name: {key: jnp.zeros_like(value) for key, value in coefficients.items()} for name in optimizer.state}


def update(
    optimizer: Optimizer,
    coefficients: Coefficients,
    gradients: Coefficients,
    state: State,
    count: Float[Array, ""],
    learning_rate: Float[Array, ""],
) -> tuple[Coefficients, State]:
    """
    One step of the rule, as a pure function; `count` steps came before it.

    These are the transforms that optax's optimizers are chains of, and their states by the names of the specification.
    """
    gradients = clip(optimizer, gradients)
    if not isinstance(optimizer, optimizers.Adamw):
        gradients = decayed(optimizer, gradients, coefficients)
    match optimizer:
        case optimizers.Sgd():
            steps = gradients
            if optimizer.dampening:
                factor = jnp.where(count == 0, 1.0, 1.0 - optimizer.dampening)
                steps = optax.tree.scale(factor, steps)
            if optimizer.momentum:
                steps, state = with_momentum(optimizer, steps, state)
        case optimizers.Adam() | optimizers.Adamw():
            steps, moments = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon).update(
                gradients,
                optax.ScaleByAdamState(count.astype(jnp.int32), state["first_moment"], state["second_moment"]),
            )
            state = {"first_moment": moments.mu, "second_moment": moments.nu}
            if isinstance(optimizer, optimizers.Adamw):
                steps = decayed(optimizer, steps, coefficients)
        case optimizers.Adamax():
            steps, moments = optax.scale_by_adamax(optimizer.beta1, optimizer.beta2, optimizer.epsilon).update(
                gradients,
                optax.ScaleByAdamState(count.astype(jnp.int32), state["first_moment"], state["infinity_norm"]),
            )
            state = {"first_moment": moments.mu, "infinity_norm": moments.nu}
        case optimizers.Adagrad():
            steps, state = scale_by_adagrad(optimizer, gradients, state)
        case optimizers.Rmsprop(centered=True):
            steps, means = optax.scale_by_stddev(optimizer.decay, optimizer.epsilon, eps_in_sqrt=False).update(
                gradients, optax.ScaleByRStdDevState(state["mean"], state["mean_square"])
            )
            state = state | {"mean": means.mu, "mean_square": means.nu}
            if optimizer.momentum:
                steps, state = with_momentum(optimizer, steps, state)
        case optimizers.Rmsprop():
            steps, means = optax.scale_by_rms(optimizer.decay, optimizer.epsilon, eps_in_sqrt=False).update(
                gradients, optax.ScaleByRmsState(state["mean_square"])
            )
            state = state | {"mean_square": means.nu}
            if optimizer.momentum:
                steps, state = with_momentum(optimizer, steps, state)
        case optimizers.Adadelta():
            steps, means = optax.scale_by_adadelta(optimizer.decay, optimizer.epsilon).update(
                gradients, optax.ScaleByAdaDeltaState(state["mean_square"], state["mean_square_step"])
            )
            state = {"mean_square": means.e_g, "mean_square_step": means.e_x}
    steps = optax.tree.scale(-learning_rate, steps)
    return optax.apply_updates(coefficients, steps), state


def clip(optimizer: Optimizer, gradients: Coefficients) -> Coefficients:
    """The gradient, each element of it no larger than `clip_value`, and then as a whole no longer than `clip_norm`."""
    if gradients["a"].ndim:  # of many fits at once, each clipped by its own norm
        return jax.vmap(partial(clip, optimizer))(gradients)
    if optimizer.clip_value is not None:
        gradients, _ = optax.clip(optimizer.clip_value).update(gradients, optax.EmptyState())
    if optimizer.clip_norm is not None:
        gradients, _ = optax.clip_by_global_norm(optimizer.clip_norm).update(gradients, optax.EmptyState())
    return gradients


def decayed(optimizer: Optimizer, steps: Coefficients, coefficients: Coefficients) -> Coefficients:
    """Steps plus weight_decay · coefficients."""
    if not optimizer.weight_decay:
        return steps
    steps, _ = optax.add_decayed_weights(optimizer.weight_decay).update(steps, optax.EmptyState(), coefficients)
    return steps


def with_momentum(
    optimizer: optimizers.Sgd | optimizers.Rmsprop, steps: Coefficients, state: State
) -> tuple[Coefficients, State]:
    """Steps plus momentum · the steps before; of Nesterov's kind, once more."""
    nesterov = isinstance(optimizer, optimizers.Sgd) and optimizer.nesterov
    steps, momentum = optax.trace(optimizer.momentum, nesterov).update(steps, optax.TraceState(state["momentum"]))
    return steps, state | {"momentum": momentum.trace}


def scale_by_adagrad(
    optimizer: optimizers.Adagrad, gradients: Coefficients, state: State
) -> tuple[Coefficients, State]:
    """Gradient / (√sum of squares + epsilon): `optax.scale_by_rss` has its epsilon inside the root."""
    squares = jax.tree.map(lambda sum, g: sum + g * g, state["sum_of_squares"], gradients)
    steps = jax.tree.map(lambda g, sum: g / (jnp.sqrt(sum) + optimizer.epsilon), gradients, squares)
    return steps, {"sum_of_squares": squares}
