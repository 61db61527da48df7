"""The schedules of the specification: the learning rate of each step, as a factor of the optimizer's."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, Tag, model_validator

from p3.fitting.section import Section, named

Steps = Annotated[int, Field(ge=1, le=10**12)]
Factor = Annotated[FiniteFloat, Field(gt=0, le=1)]
FactorOr0 = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Constant(Section):
    """The optimizer's learning rate at every step."""

    name: Literal["constant"] = Field("constant", description="Schedule of the learning rate.")


class Step(Section):
    """Times `factor` every `period` steps."""

    name: Literal["step"] = Field("step", description="Schedule of the learning rate.")
    period: Steps = Field(100, description="Steps of a period, the first if they grow.")
    factor: Factor = Field(0.5, description="What the learning rate is multiplied by.")


class MultiStep(Section):
    """Times `factor` from each milestone on."""

    name: Literal["multi_step"] = Field("multi_step", description="Schedule of the learning rate.")
    milestones: tuple[Steps, ...] = Field((100, 200), strict=False, description="Steps from which it is less.")
    factor: Factor = Field(0.5, description="What the learning rate is multiplied by.")

    @model_validator(mode="after")
    def _milestones_grow(self) -> Self:
        if any(after <= before for before, after in pairwise(self.milestones)):
            raise ValueError(f"milestones = {', '.join(map(str, self.milestones))}: each must be more than the last")
        return self


class Exponential(Section):
    """Times `factor` every step."""

    name: Literal["exponential"] = Field("exponential", description="Schedule of the learning rate.")
    factor: Factor = Field(0.999, description="What the learning rate is multiplied by.")


class Polynomial(Section):
    """(1 − step/decay_steps)^power, and 0 after that."""

    name: Literal["polynomial"] = Field("polynomial", description="Schedule of the learning rate.")
    decay_steps: Steps | None = Field(None, description="Steps to the end of the decay; all where none is given.")
    power: Annotated[FiniteFloat, Field(gt=0)] = Field(1.0, description="Power of the decay.")


class LinearWarmup(Section):
    """From `start_factor` to 1 in `warmup_steps` equal parts, and 1 after that."""

    name: Literal["linear_warmup"] = Field("linear_warmup", description="Schedule of the learning rate.")
    warmup_steps: Steps = Field(100, description="Steps to the full learning rate.")
    start_factor: Factor = Field(0.1, description="Of the learning rate, at the first step.")


class Cosine(Section):
    """From 1 to `final_factor` along half a cosine in `decay_steps`, and `final_factor` after that."""

    name: Literal["cosine"] = Field("cosine", description="Schedule of the learning rate.")
    decay_steps: Steps | None = Field(None, description="Steps to the end of the decay; all where none is given.")
    final_factor: FactorOr0 = Field(0.0, description="Of the learning rate, at the end.")


class WarmupCosine(Section):
    """`linear_warmup`, and then `cosine` up to step `decay_steps`."""

    name: Literal["warmup_cosine"] = Field("warmup_cosine", description="Schedule of the learning rate.")
    warmup_steps: Steps = Field(100, description="Steps to the full learning rate.")
    start_factor: Factor = Field(0.1, description="Of the learning rate, at the first step.")
    decay_steps: Steps | None = Field(None, description="Steps to the end of the decay; all where none is given.")
    final_factor: FactorOr0 = Field(0.0, description="Of the learning rate, at the end.")


class WarmRestarts(Section):
    """`cosine` over `period` steps, again and again, each period `period_factor` times as long as the last."""

    name: Literal["warm_restarts"] = Field("warm_restarts", description="Schedule of the learning rate.")
    period: Steps = Field(100, description="Steps of a period, the first if they grow.")
    period_factor: Annotated[int, Field(ge=1, le=10)] = Field(1, description="What the period is multiplied by.")
    final_factor: FactorOr0 = Field(0.0, description="Of the learning rate, at the end.")


class OneCycle(Section):
    """
    Up from `start_factor` to 1 along half a cosine, and down to `final_factor` along another, at the last step.

    The top is at step warmup_fraction · steps − 1, whole or not. Momentum does not go the other way.
    """

    name: Literal["one_cycle"] = Field("one_cycle", description="Schedule of the learning rate.")
    warmup_fraction: Annotated[FiniteFloat, Field(gt=0, lt=1)] = Field(0.3, description="Part of the steps that go up.")
    start_factor: Factor = Field(0.04, description="Of the learning rate, at the first step.")
    final_factor: Factor = Field(4e-6, description="Of the learning rate, at the end.")


Schedule = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Step, Tag("step")]
    | Annotated[MultiStep, Tag("multi_step")]
    | Annotated[Exponential, Tag("exponential")]
    | Annotated[Polynomial, Tag("polynomial")]
    | Annotated[LinearWarmup, Tag("linear_warmup")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[WarmupCosine, Tag("warmup_cosine")]
    | Annotated[WarmRestarts, Tag("warm_restarts")]
    | Annotated[OneCycle, Tag("one_cycle")],
    named("constant"),
]
