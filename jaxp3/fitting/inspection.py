"""A run looked at step by step: what a step computes, and what the optimizer makes of recorded gradients."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64

from jaxp3.fitting import model, train
from jaxp3.fitting.device import find_device
from jaxp3.fitting.optimizer import State, initial_state, update
from jaxp3.fitting.train import place_coefficients
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import Observation, blank_steps


def observe(spec: TrainingSpec, number: int, coefficients: Mapping[str, float]) -> Observation:
    """What a step of the specification, by its number, computes at some coefficients; eagerly. Raises as `fit` does."""
    spec = spec.replace({"devices": 1})
    with jax.enable_x64(spec.dtype == "float64"), jax.default_device(find_device(spec.device)):
        shard = train.place(spec)
        told = {name: jnp.asarray(values[0]) for name, values in blank_steps(spec, 1, number).items()}
        x, y, _ = train.seen(shard, told)
        placed = place_coefficients(spec, coefficients)
        value, gradients = train.loss_and_gradients(placed, x, y)
        arrays = (x, y, model.predict(placed, x))
        of_x, of_y, prediction = (np.asarray(array, np.float64) for array in arrays)
        by_name = {name: float(gradient) for name, gradient in gradients.items()}
        return Observation(of_x, of_y, prediction, float(value), by_name)


def replay(spec: TrainingSpec, traces: Mapping[str, Float64[np.ndarray, "steps *coefficients"]]) -> np.ndarray:
    """The updates, shape (steps, 4), that the rule makes of recorded gradients. Raises as `fit` does."""
    with jax.enable_x64(spec.dtype == "float64"), jax.default_device(find_device(spec.device)):
        told = {
            name: jnp.asarray(traces[name], spec.dtype) for name in ("coefficients", "gradients", "learning_rate")
        } | {"count": jnp.arange(len(traces["learning_rate"]), dtype=spec.dtype)}

        def one(state: State, told: dict[str, Array]) -> tuple[State, Array]:
            coefficients, gradients = (
                dict(zip("abcd", told[name], strict=True)) for name in ("coefficients", "gradients")
            )
            updated, state = update(
                spec.optimizer, coefficients, gradients, state, told["count"], told["learning_rate"]
            )
            return state, jnp.stack([updated[name] - coefficients[name] for name in "abcd"])

        start = place_coefficients(spec, spec.start.model_dump())
        return np.asarray(jax.lax.scan(one, initial_state(spec.optimizer, start), told)[1], np.float64)
