"""`tap`: a name for what a layer returns, and what a tape sees of it."""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from p3.parity.models.tape import Point, Role, Tape, arrays_mapped
from torchp3.function import from_array, to_array

TAPE: ContextVar[Tape | None] = ContextVar("TAPE", default=None)  # that watches the model which runs


def tap(name: str, x: Tensor) -> Tensor:
    """
    Name what a layer returns, in a model that has functions in place of modules, for `p3.check_model`.

    Parameters
    ----------
    name : of the layer
    x : what it returns

    Returns
    -------
    Tensor
        x itself, unless `p3.check_model` runs the model.

    Examples
    --------
    >>> hidden = tap("fc1", x @ weight.T + bias)
    """
    tape = TAPE.get()
    if tape is None:
        return x
    tape.meet(name, "")
    named: Tensor = watched(tape, name, "output", x) if tape.wants(name) else x
    return named


def watched(tape: Tape, layer: str, role: Role, tree: Any) -> Any:
    """What a layer receives or returns, where the tape sees each array, and may replace it."""

    def see(number: int, x: Tensor) -> Tensor:
        seen: Tensor = Replaceable.apply(x, tape, Point(layer, role, number))
        return seen

    return arrays_mapped(see, tree, lambda x: isinstance(x, Tensor))


class Replaceable(torch.autograd.Function):
    """The identity, unless the tape has another value for it, or another cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tape: Tape, point: Point) -> Tensor:
        """The tape's value, or a copy of x, which the model may write into."""
        ctx.tape, ctx.point = tape, point
        value, ctx.call = tape.forward(point, to_array(x))
        return x.clone() if value is None else from_array(value.copy()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None, None]:
        """The tape's cotangent, or this one."""
        value = ctx.tape.backward(ctx.point, ctx.call, to_array(cotangent))
        return cotangent if value is None else from_array(value.copy()).to(cotangent.dtype), None, None
