"""P3(x) = (5x³ − 3x)/2 as a `torch.autograd.Function` with its own derivative rules."""

import inspect
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    get_dynamic_layer_stack_depth,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from p3.errors import dtype_error

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def polynomial(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """P3(x) = x (5x² − 3)/2, in one new tensor: a fresh one for each operation takes three times as long."""
    return (2.5 * x).mul_(x).sub_(1.5).mul_(x)


def derivative(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """P3'(x) = 3(5x² − 1)/2, in one new tensor."""
    return (7.5 * x).mul_(x).sub_(1.5)


def array(x: Any) -> Inexact[Tensor, "*shape"]:
    """Make a tensor of a Python float or complex number, and refuse what P3 is not defined for."""
    if type(x) in (float, complex):  # and not NumPy's float64, which is a float as well
        return torch.as_tensor(x)
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        given = x.dtype if isinstance(x, Tensor) else type(x)
        raise dtype_error(str(given), "torch.as_tensor(x, dtype=torch.float32)")
    if x.layout not in (torch.strided, torch.jagged):
        raise dtype_error(f"a tensor of layout {x.layout}", "x.to_dense()")
    return x


def widen(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """Half precision as float32, any other as it is: the precision to compute in, before one rounding."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


class LegendrePolynomial3(torch.autograd.Function):
    """The residual of both rules is x alone, so that each can be differentiated again, by either."""

    @staticmethod
    def forward(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """The primal output."""
        x = array(x)
        return polynomial(widen(x)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Inexact[Tensor, "*shape"]], output: Inexact[Tensor, "*shape"]) -> None:
        """Keep the residual."""
        x = array(*inputs)
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """The vjp: the output's cotangent times the conjugate of P3'(x) is the input's."""
        (x,) = ctx.saved_tensors
        slope, cotangent = derivative(widen(x)).conj(), widen(cotangent)
        # In the slope's memory, unless what is done here is differentiated, or the cotangent is a batch and x is not.
        batched = is_functorch_wrapped_tensor(cotangent) or is_legacy_batchedtensor(cotangent)
        fresh = torch.is_grad_enabled() or batched
        return (slope * cotangent if fresh else slope.mul_(cotangent)).to(x.dtype)

    @staticmethod
    def jvp(ctx: Any, tangent: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """The jvp: the input's tangent times P3'(x) is the output's."""
        (x,) = ctx.saved_tensors
        layer = peek_interpreter_stack()
        if layer is not None and layer.key() == TransformType.Grad and get_proxy_mode() is not None:
            # Traced, and for a dual number that is not torch.func.jvp's: by torch.func.linearize, whose program would
            # have x's part of the result as a constant, made from tangents that are uninitialised memory.
            raise NotImplementedError(
                "torch.func.linearize gives no derivative to torch.func.grad, vjp or jacrev around it, "
                "of any function; use torch.func.jvp"
            )
        # PyTorch switches forward mode off in here, so that to an outer one the tangent would be a constant, and its
        # derivative 0 without a word (pytorch issue 197867). With it on, x must lose the tangent that this call is for.
        with forward_ad._set_fwd_grad_enabled(True):
            x, _ = forward_ad.unpack_dual(x)
            return (widen(tangent) * derivative(widen(x))).to(x.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Inexact[Tensor, "*shape"]) -> tuple[Tensor, int | None]:
        """A batch is one larger array, as for any elementwise function."""
        return LegendrePolynomial3.apply(x), in_dims[0]


# Kept, since PyTorch asks for it at each call, which takes longer to make than P3 of 2000 numbers.
LegendrePolynomial3.forward.__signature__ = inspect.signature(LegendrePolynomial3.forward)  # type: ignore[attr-defined]


def apply(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """P3 by the rules above; in a function of its own, which `torch.compile` can be told to leave whole."""
    value: Inexact[Tensor, "*shape"] = LegendrePolynomial3.apply(x)
    return value


def keep_apply_whole() -> None:
    """
    Have Dynamo put `apply` into its graph as it is, for AOTAutograd to trace, rules and all.

    Dynamo would take it apart, and then drop the rules under torch.func (pytorch issues 193279 and 192985), detach what
    `torch.compile(backend="eager")` and strict export differentiate, and not notice an x that is changed afterwards.
    """
    torch.compiler.allow_in_graph(apply)


# Called while Dynamo traces, and not when this is imported, which would load Dynamo.
keep_apply_whole._dynamo_marked_constant = True  # type: ignore[attr-defined]


def legendre_p3(x: Inexact[Tensor, "*shape"] | float | complex) -> Inexact[Tensor, "*shape"]:
    """
    The degree-3 Legendre polynomial P3(x) = (5x³ − 3x)/2 of each element of x, in x's shape and dtype.

    Differentiable any number of times, in reverse and forward mode, by the hand-written rule P3'(x) = (15x² − 3)/2,
    whose residual is x alone. The gradient of complex x follows PyTorch's convention: the cotangent times the conjugate
    of P3'(x), the direction of steepest ascent (`jaxp3` leaves the conjugate out). comparisons/modes/modes.md has every
    transform. In forward mode inside `torch.compile`, PyTorch differentiates the polynomial itself.

    Parameters
    ----------
    x : of float16, bfloat16, float32, float64, complex64 or complex128, of any shape and strides; a Python float or
        complex number is taken as a tensor of no dimensions and PyTorch's default dtype

    Raises
    ------
    TypeError
        x is anything else, integers among it.

    Notes
    -----
    Of the usual forms, x·(2.5·x·x − 1.5) has the least error. With ε the dtype's epsilon, that of P3(x) is at most 2ε
    of the larger of 2.5|x|³ and 1.5|x|, ε/2 for each of the four roundings. The derivative's is 1.5ε of the larger of
    7.5x² and 1.5, the gradient's 2ε, with the cotangent's rounding; complex ones' 5ε.
    A compiler that fuses multiply and add leaves out roundings, and stays within. Half precision is computed in float32
    and rounded once: 0.51ε. The form overflows only where the result does (`0.5 * (5 * x**3 - 3 * x)` does so sooner,
    and makes of ±∞ a NaN), so P3(±∞) = ±∞, P3'(±∞) = ∞, P3(±0) = ∓0, and a subnormal x gives −1.5x. A NaN stays a NaN;
    complex infinities become NaN, as in any complex product. The gradient overflows where P3'(x) does, however small
    the cotangent. Third derivatives are 15, but NaN at ±∞ in nested forward mode.

    References
    ----------
    NIST Digital Library of Mathematical Functions, §18.5(iv).

    Examples
    --------
    >>> legendre_p3(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-1., -0., 1.])
    """
    x = array(x)
    if not torch.compiler.is_dynamo_compiling():
        return apply(x)
    if forward_ad._current_level < 0:
        keep_apply_whole()
        return apply(x)
    if get_dynamic_layer_stack_depth() == 0 and forward_ad.unpack_dual(x).tangent is None:
        raise NotImplementedError("torch.compile takes the tangent from its inputs; make dual numbers inside of it")
    # AOTAutograd cannot trace a Function's jvp; the operations alone are right in forward mode, to any order. With one
    # axis more, since under vmap the product of a number and a tensor of no dimensions has a tangent in float64.
    return LegendrePolynomial3.forward(x[None])[0]
