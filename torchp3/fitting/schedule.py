"""The learning rates of the specification, from `torch.optim.lr_scheduler`."""

import numpy as np
import torch
from jaxtyping import Float64
from torch.optim import lr_scheduler

from p3.fitting import schedules
from p3.fitting.spec import TrainingSpec


def learning_rates(spec: TrainingSpec) -> Float64[np.ndarray, "steps"]:
    """The learning rate of each step."""
    if isinstance(spec.schedule, schedules.Constant):
        return np.full(spec.steps, spec.optimizer.learning_rate)
    scheduler = make_schedule(spec)
    rates = [float(scheduler.get_last_lr()[0])]
    for _ in range(min(spec.steps - 1, spec.decay_steps)):  # beyond its decay PyTorch's cosine rises again
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(float(scheduler.get_last_lr()[0]))
    return np.pad(rates, (0, spec.steps - len(rates)), mode="edge")


def make_schedule(spec: TrainingSpec) -> lr_scheduler.LRScheduler:
    """The schedule of the specification, for an optimizer that has nothing to do but keep the learning rate."""
    rate = spec.optimizer.learning_rate
    optimizer = torch.optim.SGD([torch.zeros(())], rate)
    match spec.schedule:
        case schedules.Step(period=period, factor=factor):
            return lr_scheduler.StepLR(optimizer, period, factor)
        case schedules.MultiStep(milestones=milestones, factor=factor):
            return lr_scheduler.MultiStepLR(optimizer, milestones, factor)
        case schedules.Exponential(factor=factor):
            return lr_scheduler.ExponentialLR(optimizer, factor)
        case schedules.Polynomial(power=power):
            return lr_scheduler.PolynomialLR(optimizer, spec.decay_steps, power)
        case schedules.LinearWarmup(start_factor=start, warmup_steps=warmup):
            return lr_scheduler.LinearLR(optimizer, start, 1.0, warmup)
        case schedules.Cosine(final_factor=final):
            return lr_scheduler.CosineAnnealingLR(optimizer, spec.decay_steps, final * rate)
        case schedules.WarmupCosine(start_factor=start, warmup_steps=warmup, final_factor=final):
            up = lr_scheduler.LinearLR(optimizer, start, 1.0, warmup)
            down = lr_scheduler.CosineAnnealingLR(optimizer, spec.decay_steps - warmup, final * rate)
            return lr_scheduler.SequentialLR(optimizer, [up, down], [warmup])
        case schedules.WarmRestarts(period=period, period_factor=factor, final_factor=final):
            return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, factor, final * rate)
        case schedules.OneCycle(warmup_fraction=fraction, start_factor=start, final_factor=final):
            return lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=rate,
                total_steps=spec.steps,
                pct_start=fraction,
                cycle_momentum=False,
                div_factor=1 / start,
                final_div_factor=start / final,
            )
    raise AssertionError(spec.schedule)
