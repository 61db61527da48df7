"""The learning rates of the specification, from `optax`."""

from itertools import accumulate, takewhile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Float64

from p3.fitting import schedules
from p3.fitting.spec import TrainingSpec


def learning_rates(spec: TrainingSpec) -> Float64[np.ndarray, "steps"]:
    """The learning rate of each step: in float64, where counted in float64; optax's own count is an int32."""
    if isinstance(spec.schedule, schedules.Constant):
        return np.full(spec.steps, spec.optimizer.learning_rate)
    with jax.enable_x64(True):
        return np.asarray(make_schedule(spec)(jnp.arange(spec.steps, dtype=jnp.float64)))


def make_schedule(spec: TrainingSpec) -> optax.Schedule:
    """The schedule of the specification, of how many steps came before."""
    rate, last = spec.optimizer.learning_rate, spec.decay_steps
    match spec.schedule:
        case schedules.Step(period=period, factor=factor):
            return optax.exponential_decay(rate, period, factor, staircase=True)
        case schedules.MultiStep(milestones=milestones, factor=factor):
            return optax.piecewise_constant_schedule(rate, dict.fromkeys(milestones, factor))
        case schedules.Exponential(factor=factor):
            return optax.exponential_decay(rate, 1, factor)
        case schedules.Polynomial(power=power):
            return optax.polynomial_schedule(rate, 0.0, power, last)
        case schedules.LinearWarmup(start_factor=start, warmup_steps=warmup):
            return optax.linear_schedule(start * rate, rate, warmup)
        case schedules.Cosine(final_factor=final):
            return optax.cosine_decay_schedule(rate, last, final)
        case schedules.WarmupCosine(start_factor=start, warmup_steps=warmup, final_factor=final):
            return optax.warmup_cosine_decay_schedule(start * rate, rate, warmup, last, final * rate)
        case schedules.WarmRestarts(period=period, period_factor=factor, final_factor=final):
            lengths = [period * factor**k for k in range(spec.steps // period + 1 if factor == 1 else 64)]
            begins = list(takewhile(lambda begin: begin < spec.steps, accumulate(lengths)))
            cycles = [optax.cosine_decay_schedule(rate, length, final) for length in lengths[: len(begins) + 1]]
            return optax.join_schedules(cycles, begins)
        case schedules.OneCycle(warmup_fraction=fraction, start_factor=start, final_factor=final):
            return one_cycle(rate, fraction * spec.steps - 1, spec.steps - 1, start, final)
    raise AssertionError(spec.schedule)


def one_cycle(rate: float, top: float, last: int, start: float, final: float) -> optax.Schedule:
    """
    Half a cosine up to a step that need not be whole, and half of one down, as PyTorch has it.

    `optax.cosine_onecycle_schedule` has its top at a whole step, and its end a step later.
    """

    def schedule(count: Float[Array, "*steps"]) -> Float[Array, "*steps"]:
        up = 0.5 * (1 - jnp.cos(jnp.pi * count / top))
        down = 0.5 * (1 + jnp.cos(jnp.pi * (count - top) / (last - top)))
        return rate * jnp.where(count <= top, start + (1 - start) * up, final + (1 - final) * down)

    return schedule
