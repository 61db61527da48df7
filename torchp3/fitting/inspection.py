"""A run looked at step by step: what a step computes, and what the optimizer makes of recorded gradients."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float64

from p3.fitting.spec import TrainingSpec
from p3.fitting.training import Observation, blank_steps
from torchp3.fitting import model, train
from torchp3.fitting.optimizer import initial_state, update
from torchp3.fitting.train import place_coefficients


def observe(spec: TrainingSpec, number: int, coefficients: Mapping[str, float]) -> Observation:
    """What a step of the specification, by its number, computes at some coefficients; eagerly. Raises as `fit` does."""
    spec = spec.replace({"devices": 1})
    with torch.inference_mode(False), torch.enable_grad():
        shard = train.place(spec)
        told = {name: torch.as_tensor(values[0]) for name, values in blank_steps(spec, 1, number).items()}
        x, y, _ = train.seen(shard, told)
        placed = place_coefficients(spec, coefficients)
        value, gradients = train.loss_and_gradients(placed, x, y)
        arrays = (x, y, model.predict(placed, x))
        of_x, of_y, prediction = (array.cpu().numpy().astype(np.float64) for array in arrays)
        by_name = {name: float(gradient) for name, gradient in gradients.items()}
        return Observation(of_x, of_y, prediction, float(value), by_name)


def replay(spec: TrainingSpec, traces: Mapping[str, Float64[np.ndarray, "steps *coefficients"]]) -> np.ndarray:
    """The updates, shape (steps, 4), that the rule makes of recorded gradients. Raises as `fit` does."""
    with torch.inference_mode(False), torch.no_grad():
        state = initial_state(spec.optimizer, place_coefficients(spec, spec.start.model_dump()))
        told = [
            [place_coefficients(spec, dict(zip("abcd", row, strict=True))) for row in traces[name].tolist()]
            for name in ("coefficients", "gradients")
        ]
        rates = torch.as_tensor(traces["learning_rate"].astype(spec.dtype))
        updates = []
        for count, (coefficients, gradients) in enumerate(zip(*told, strict=True)):
            updated, state = update(
                spec.optimizer, coefficients, gradients, state, torch.tensor(count, dtype=rates.dtype), rates[count]
            )
            updates.append(torch.stack([updated[name] - coefficients[name] for name in "abcd"]))
        return torch.stack(updates).cpu().numpy().astype(np.float64)
