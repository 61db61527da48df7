"""The optimizers of the specification: update rules, with every hyperparameter that decides one."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, Tag, model_validator

from p3.fitting.section import Section, named

Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(ge=0, lt=1)]

DECAYED = "Factor of the coefficient that is added to its gradient; in adamw, to its step."

# What both frameworks call by one name, and do not do in the same way.
REFUSED = {
    "amsgrad": "PyTorch takes the largest second moment before its bias is corrected, and optax after it",
    "nadam": "PyTorch's momentum follows a schedule of its own, and optax's does not",
    "rprop": "PyTorch takes back a step after a change of sign, and optax does not",
    "lbfgs": "PyTorch and optax search along the line in different ways, and come to the minimum by other paths",
}


class _Optimizer(Section):
    """
    What every update rule has.

    The gradient is clipped, element by element and then by its norm, before the rule sees it. Weight decay adds
    weight_decay · coefficient to the gradient, which makes it an L2 penalty, unless the rule says otherwise.
    """

    name: str
    learning_rate: Positive
    weight_decay: NotNegative = Field(0.0, description=DECAYED)
    clip_norm: Positive | None = Field(None, description="Largest norm of the gradient; scaled down to it if above.")
    clip_value: Positive | None = Field(None, description="Largest absolute value of a gradient's element.")

    @property
    def state(self) -> tuple[str, ...]:
        """What the rule remembers of each coefficient; all 0 at the start."""
        return ()


class Sgd(_Optimizer):
    """
    Gradient descent: coefficient −= learning_rate · gradient, or with momentum · m + (1 − dampening) · gradient for it.

    Nesterov's takes gradient + momentum · m. The first step is not dampened.
    """

    name: Literal["sgd"] = Field("sgd", description="Update rule.")
    learning_rate: Positive = Field(5e-6, description="Size of a step.")
    momentum: Fraction = Field(0.0, description="Factor of the last step that is kept.")
    dampening: Fraction = Field(0.0, description="Part of the gradient that momentum leaves out.")
    nesterov: bool = Field(False, description="Nesterov's momentum, which looks ahead.")

    @property
    def state(self) -> tuple[str, ...]:
        """The step that is kept, if there is one."""
        return ("momentum",) if self.momentum else ()

    @model_validator(mode="after")
    def _momentum_for_what_changes_it(self) -> Self:
        if self.nesterov and (self.dampening or not self.momentum):
            raise ValueError("nesterov needs a momentum above 0, and no dampening")
        if self.dampening and not self.momentum:
            raise ValueError("dampening needs a momentum above 0")
        return self


class _Moments(_Optimizer):
    """Rules with means of the gradient and of its square, whose start at 0 is made up for."""

    learning_rate: Positive = Field(1e-3, description="Size of a step.")
    beta1: Fraction = Field(0.9, description="Decay of the mean gradient.")
    beta2: Fraction = Field(0.999, description="Decay of the mean square of the gradient.")
    epsilon: Positive = Field(1e-8, description="Added to a denominator, so that it is not 0.")

    @property
    def state(self) -> tuple[str, ...]:
        """Both means."""
        return ("first_moment", "second_moment")


class Adam(_Moments):
    """Kingma and Ba, 2015: learning_rate · mean / (√mean square + epsilon)."""

    name: Literal["adam"] = Field("adam", description="Update rule.")


class Adamw(_Moments):
    """Loshchilov and Hutter, 2019: Adam, and coefficient −= learning_rate · weight_decay · coefficient besides."""

    name: Literal["adamw"] = Field("adamw", description="Update rule.")
    weight_decay: NotNegative = Field(0.01, description=DECAYED)


class Adamax(_Moments):
    """Kingma and Ba, 2015: the largest of |gradient| + epsilon, decaying by beta2, for the root of the mean square."""

    name: Literal["adamax"] = Field("adamax", description="Update rule.")

    @property
    def state(self) -> tuple[str, ...]:
        """The mean, and the largest gradient."""
        return ("first_moment", "infinity_norm")


class Adagrad(_Optimizer):
    """Duchi, Hazan and Singer, 2011: learning_rate · gradient / (√sum of squares + epsilon)."""

    name: Literal["adagrad"] = Field("adagrad", description="Update rule.")
    learning_rate: Positive = Field(1e-2, description="Size of a step.")
    epsilon: Positive = Field(1e-10, description="Added to a denominator, so that it is not 0.")

    @property
    def state(self) -> tuple[str, ...]:
        """The sum of the squares of the gradients."""
        return ("sum_of_squares",)


class Rmsprop(_Optimizer):
    """Tieleman and Hinton, 2012: gradient / (√mean square + epsilon), of the variance instead if centered."""

    name: Literal["rmsprop"] = Field("rmsprop", description="Update rule.")
    learning_rate: Positive = Field(1e-3, description="Size of a step.")
    decay: Fraction = Field(0.99, description="Decay of the means.")
    epsilon: Positive = Field(1e-8, description="Added to a denominator, so that it is not 0.")
    momentum: Fraction = Field(0.0, description="Factor of the last step that is kept.")
    centered: bool = Field(
        False, description="Divide by the standard deviation; not a number where rounding makes the variance negative."
    )

    @property
    def state(self) -> tuple[str, ...]:
        """The means, and the step that is kept, if there is one."""
        return ("mean_square", *("mean",) * self.centered, *("momentum",) * (self.momentum > 0))

    @model_validator(mode="after")
    def _variance_of_more_than_one(self) -> Self:
        if self.centered and not self.decay:
            raise ValueError("centered needs a decay above 0: the variance of one gradient is 0")
        return self


class Adadelta(_Optimizer):
    """Zeiler, 2012: gradient · √(mean square of steps + epsilon) / √(mean square of gradients + epsilon)."""

    name: Literal["adadelta"] = Field("adadelta", description="Update rule.")
    learning_rate: Positive = Field(1.0, description="Size of a step.")
    decay: Fraction = Field(0.9, description="Decay of the means.")
    epsilon: Positive = Field(1e-6, description="Added to a denominator, so that it is not 0.")

    @property
    def state(self) -> tuple[str, ...]:
        """Both mean squares."""
        return ("mean_square", "mean_square_step")


Optimizer = Annotated[
    Annotated[Sgd, Tag("sgd")]
    | Annotated[Adam, Tag("adam")]
    | Annotated[Adamw, Tag("adamw")]
    | Annotated[Adamax, Tag("adamax")]
    | Annotated[Adagrad, Tag("adagrad")]
    | Annotated[Rmsprop, Tag("rmsprop")]
    | Annotated[Adadelta, Tag("adadelta")],
    named("sgd"),
]
