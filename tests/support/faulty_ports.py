"""Ports with one real mistake each, the check that catches it, and what its explanation says."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.custom_derivatives import SymbolicZero
from torch.nn import functional

import jaxp3
import torchp3
from p3.parity import Operator
from tests.support.right_pairs import LINE, POSITIVE, TorchScaledSine

RANDOM = np.random.default_rng(5)
SQUARE, OTHER_SQUARE = RANDOM.normal(size=(4, 4)), RANDOM.normal(size=(4, 4))
TALL = RANDOM.normal(size=(5, 7))
WEIGHT = RANDOM.normal(size=7)
COMPLEX = RANDOM.normal(size=20) + 1j * RANDOM.normal(size=20)


class Faulty(NamedTuple):
    """A right function, a wrong port of it, the inputs, the check that fails, what it says, and options."""

    reference: Operator
    port: Operator
    inputs: Any
    check: str
    says: str
    options: dict[str, Any]


def in_jax(right: Any, wrong: Any, inputs: Any, check: str, says: str, **options: Any) -> Faulty:
    """The port is in JAX."""
    return Faulty(torchp3.as_operator(right), jaxp3.as_operator(wrong), inputs, check, says, options)


def in_torch(right: Any, wrong: Any, inputs: Any, check: str, says: str, **options: Any) -> Faulty:
    """The port is in PyTorch."""
    return Faulty(jaxp3.as_operator(right), torchp3.as_operator(wrong), inputs, check, says, options)


def jax_rule(f: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """A custom_vjp of f, whose residuals are its arguments: backward(*arguments, cotangent)."""
    function = jax.custom_vjp(lambda *arguments: f(*arguments))

    def pull(residuals: Any, cotangent: Any) -> Any:
        gradients = backward(*residuals, cotangent)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    function.defvjp(lambda *arguments: (f(*arguments), arguments), pull)
    return function


def torch_rule(f: Callable[..., Any], backward_rule: Callable[..., Any], save: Callable[..., Any] | None = None) -> Any:
    """An autograd.Function of f: backward_rule(*saved, cotangent), where arguments or save(*arguments) are saved."""

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments):
            return f(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*(save(*inputs) if save else inputs))

        @staticmethod
        def backward(ctx, cotangent):
            return backward_rule(*ctx.saved_tensors, cotangent)

    return Function


class SavesAnIntermediate(torch.autograd.Function):
    """sin(x)² whose rule uses sin x and cos x as forward computed them: right once, not twice."""

    @staticmethod
    def forward(ctx, x):
        sine, cosine = torch.sin(x), torch.cos(x)
        ctx.save_for_backward(sine, cosine)
        return sine * sine

    @staticmethod
    def backward(ctx, cotangent):
        sine, cosine = ctx.saved_tensors
        return 2 * cotangent * sine * cosine


def sets_a_seed(x):
    """sin x, and a seed for all that comes after."""
    torch.manual_seed(0)
    return torch.sin(x)


class ForgetsTheOuterTangent(torch.autograd.Function):
    """sin x with a jvp whose derivative is a constant for PyTorch, as the functions of its saved tensors are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * torch.cos(x)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * torch.cos(x)


class DetachesItsTangent(ForgetsTheOuterTangent):
    """sin x with a jvp whose residual is detached: right in reverse mode, and not in reverse over forward."""

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * torch.cos(x.detach())


class TakesNoTangent(torch.autograd.Function):
    """x² whose jvp was written for no argument."""

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 2 * x * cotangent

    @staticmethod
    def jvp(ctx):
        return 0


class BearsNoNone(torch.autograd.Function):
    """sin x and cos x, of which a gradient of one alone was not thought of."""

    @staticmethod
    def forward(x):
        return torch.sin(x), torch.cos(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, of_sine, of_cosine):
        (x,) = ctx.saved_tensors
        return of_sine * torch.cos(x) - of_cosine * torch.sin(x)


class GivesUpAtNone(BearsNoNone):
    """The same, which takes a None for all."""

    @staticmethod
    def backward(ctx, of_sine, of_cosine):
        return None if of_sine is None or of_cosine is None else BearsNoNone.backward(ctx, of_sine, of_cosine)


class CumulativeSumByView(torch.autograd.Function):
    """Sums down the columns, whose gradient takes the cotangent for one that lies in memory in one piece."""

    @staticmethod
    def forward(x):
        return torch.cumsum(x, 0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent.view(-1).view(cotangent.shape).flip(0).cumsum(0).flip(0)


class WrongVmapOfOne(torch.autograd.Function):
    """x·y whose vmap rule thinks that both have the axis."""

    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        x, y = ctx.saved_tensors
        return cotangent * y, cotangent * x

    @staticmethod
    def vmap(info, in_dims, x, y):
        return WrongVmapOfOne.apply(x, y) * (1 if in_dims == (0, 0) else 2), 0


class ForwardMode(torch.autograd.Function):
    """The positive part, with a NaN in forward mode at its kink, and twice as much in half precision."""

    @staticmethod
    def forward(x):
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return cotangent * (x > 0)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        slope = torch.where(x == 0, torch.nan, (x > 0).to(x.dtype))
        return tangent * slope * (2 if x.dtype.itemsize == 2 else 1)


@jax.custom_jvp
def symbolic_product(x, y):
    return x * y


@functools.partial(symbolic_product.defjvp, symbolic_zeros=True)
def symbolic_product_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    if isinstance(dx, SymbolicZero) or isinstance(dy, SymbolicZero):
        return x * y, jnp.zeros_like(x)
    return x * y, y * dx + x * dy


def raises_for_nan(x):
    if x.isnan().any():
        raise ValueError("not a number")
    return torch.sin(x)


symbolic_pair = jax.custom_vjp(lambda x: (jnp.sin(x), jnp.cos(x)))


def symbolic_pair_backward(x, cotangents):
    if any(isinstance(v, SymbolicZero) for v in cotangents):
        return (jnp.zeros_like(x),)
    return (cotangents[0] * jnp.cos(x) - cotangents[1] * jnp.sin(x),)


symbolic_pair.defvjp(
    lambda x: ((jnp.sin(x.value), jnp.cos(x.value)), x.value), symbolic_pair_backward, symbolic_zeros=True
)


def leading_axis_kept(x, y, cotangent):
    """Gradients of a product that know axes of length 1, and no others."""

    def sum_like(g, like):
        axes = tuple(i for i in range(like.ndim) if like.shape[i] == 1 and g.shape[i] != 1)
        return g.sum(axes, keepdims=True) if like.ndim == g.ndim else g[0]

    return sum_like(cotangent * y, x), sum_like(cotangent * x, y)


class StaleResidual(torch.autograd.Function):
    """x² that keeps its residual with the class: that of the last call, not of this one."""

    x: torch.Tensor

    @staticmethod
    def forward(ctx, x):
        StaleResidual.x = x
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        return 2 * StaleResidual.x * cotangent


class DetachedResidual(torch.autograd.Function):
    """x³ that keeps its input as an attribute, detached."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        return 3 * ctx.x * ctx.x * cotangent


class ForgetsAnArgument(torch.autograd.Function):
    """x·y without a gradient for y."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(y)
        return x * y

    @staticmethod
    def backward(ctx, cotangent):
        (y,) = ctx.saved_tensors
        return cotangent * y, None


class WrongVmapRule(torch.autograd.Function):
    """x² whose own vmap rule gives 2x²."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 2 * x * cotangent

    @staticmethod
    def vmap(info, in_dims, x):
        return 2 * x * x, in_dims[0]


class WrongJvp(torch.autograd.Function):
    """sin x whose jvp has the wrong sign, and whose vjp is right."""

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return torch.cos(x) * cotangent

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return -torch.cos(x) * tangent


class AsksTheWrongArgument(torch.autograd.Function):
    """x·y whose gradient for y depends on whether x requires one."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, cotangent):
        x, y = ctx.saved_tensors
        return cotangent * y, cotangent * x if ctx.needs_input_grad[0] else None


class BackwardInBackward(torch.autograd.Function):
    """y·sin x whose gradient for x is accumulated in x itself, which DistributedDataParallel takes for x's gradient."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return y * torch.sin(x)

    @staticmethod
    def backward(ctx, cotangent):
        x, y = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, cotangent * torch.sin(x)
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            before, x.grad = x.grad, None
            torch.autograd.backward(y * torch.sin(x), cotangent, create_graph=again, inputs=[x])
            gradient, x.grad = x.grad, before
        return gradient, cotangent * torch.sin(x)


class SharedGradient(torch.autograd.Function):
    """x² whose gradient is kept for calls with an equal input, until the next that goes forward."""

    gradients: ClassVar[dict[int, torch.Tensor]] = {}

    @staticmethod
    def forward(ctx, x):
        ctx.key = hash(f"{x.dtype} {x.tolist()}")
        ctx.save_for_backward(x)
        SharedGradient.gradients.pop(ctx.key, None)
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return SharedGradient.gradients.setdefault(ctx.key, 2 * x * cotangent)


class SharedResidual(torch.autograd.Function):
    """x² whose residual is shared by calls with equal inputs, and forgotten by the first of them that goes back."""

    residuals: ClassVar[dict[int, torch.Tensor]] = {}

    @staticmethod
    def forward(ctx, x):
        ctx.key = hash(f"{x.dtype} {x.tolist()}")
        SharedResidual.residuals[ctx.key] = x
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        return 2 * SharedResidual.residuals.pop(ctx.key) * cotangent


@jax.custom_batching.custom_vmap
def rounds_a_batch(x):
    return x


@rounds_a_batch.def_vmap
def rounds_a_batch_rule(axis_size, in_batched, x):
    return jnp.round(x), True


@jax.custom_batching.custom_vmap
def wrong_custom_vmap(x):
    return x * x


@wrong_custom_vmap.def_vmap
def wrong_custom_vmap_rule(axis_size, in_batched, x):
    return x * x + 1, True


def custom_jvp(f: Callable[..., Any], tangent: Callable[..., Any]) -> Any:
    """A custom_jvp of f of one argument: tangent(x, dx)."""
    function = jax.custom_jvp(f)
    function.defjvp(lambda primals, tangents: (f(*primals), tangent(*primals, *tangents)))
    return function


def count_calls() -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that gives something else each time."""
    calls = [0]

    def f(x: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return x * (1 + 1e-12 * calls[0])

    return f


def in_place(x: torch.Tensor) -> torch.Tensor:
    """2x that doubles what it was given."""
    with torch.no_grad():
        x *= 2
    return x.clone()


def first_of_each_row(cotangent: Any) -> Any:
    return cotangent[:1]


def p3_slope(x: Any) -> Any:
    return 7.5 * x * x - 1.5


def p3(x: Any) -> Any:
    return x * (2.5 * x * x - 1.5)


HALF_POINTS = np.arange(-5, 6) / 2.0
TIES = np.array([[1.0, 3.0, 3.0, 2.0], [5.0, 1.0, 5.0, 5.0]])

# By what goes wrong.
FAULTY = {
    # --- the derivative itself
    "sign": in_jax(torch.sin, jax_rule(jnp.sin, lambda x, v: -v * jnp.cos(x)), LINE, "vjp", "sign is wrong"),
    "factor": in_jax(torch.square, jax_rule(jnp.square, lambda x, v: v * x), LINE, "vjp", "0.5 times"),
    "1 % too much": in_jax(torch.sin, jax_rule(jnp.sin, lambda x, v: 1.01 * v * jnp.cos(x)), LINE, "vjp", "1.01 times"),
    "dropped constant term": in_jax(
        torchp3.legendre_p3, jax_rule(p3, lambda x, v: v * 7.5 * x * x), LINE, "vjp", "off by a constant, 1.5"
    ),
    "dropped term": in_jax(torchp3.legendre_p3, jax_rule(p3, lambda x, v: -1.5 * v), LINE, "vjp", "off"),
    "the derivative of its output": in_jax(
        torch.sigmoid, jax_rule(jax.nn.sigmoid, lambda x, v: v * x * (1 - x)), LINE, "vjp", "off"
    ),
    "zero": in_jax(torch.sin, jax_rule(jnp.sin, lambda x, v: 0 * v), LINE, "vjp", "0 everywhere"),
    "cotangent ignored": in_jax(
        torch.sin, jax_rule(jnp.sin, lambda x, v: jnp.cos(x)), LINE, "vjp", "does not depend on the cotangent"
    ),
    "cotangent squared": in_jax(
        torch.sin, jax_rule(jnp.sin, lambda x, v: v * v * jnp.cos(x)), LINE, "linearity", "not linear"
    ),
    "gradient clipped": in_jax(
        torch.square, jax_rule(jnp.square, lambda x, v: jnp.clip(2 * x * v, -1, 1)), LINE, "linearity", "not linear"
    ),
    "cotangent summed": in_jax(
        torch.sin, jax_rule(jnp.sin, lambda x, v: v.sum() * jnp.cos(x)), LINE, "vjp", "of the largest element off"
    ),
    "a straight-through estimator": in_jax(
        torch.round, jax_rule(jnp.round, lambda x, v: v), LINE + 0.01, "vjp", "where all should be 0"
    ),
    "off by one element": in_jax(
        torch.sin, jax_rule(jnp.sin, lambda x, v: jnp.roll(v * jnp.cos(x), 1)), LINE, "vjp", "off by one element"
    ),
    "reversed": in_jax(torch.exp, jax_rule(jnp.exp, lambda x, v: (v * jnp.exp(x))[::-1]), LINE, "vjp", "reversed"),
    "NaN at one point": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: v * jnp.where(x == x[50] if x.ndim else False, jnp.nan, jnp.cos(x))),
        LINE,
        "vjp",
        "NaN in 1 of 101",
    ),
    "NaN from the branch not taken": in_jax(
        lambda x: torch.where(x > 0, torch.sqrt(torch.where(x > 0, x, 1.0)), 0.0),
        lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0),
        LINE,
        "vjp",
        "NaN in",
    ),
    "in PyTorch: sign": in_torch(
        jnp.sin, torch_rule(torch.sin, lambda x, v: -v * torch.cos(x)), LINE, "vjp", "sign is wrong"
    ),
    "in PyTorch: factor": in_torch(jnp.square, torch_rule(torch.square, lambda x, v: v * x), LINE, "vjp", "0.5 times"),
    "in PyTorch: cotangent ignored": in_torch(
        jnp.sin, torch_rule(torch.sin, lambda x, v: torch.cos(x)), LINE, "vjp", "does not depend on the cotangent"
    ),
    # --- forward mode
    "custom_jvp: sign": in_jax(torch.sin, custom_jvp(jnp.sin, lambda x, dx: -jnp.cos(x) * dx), LINE, "jvp", "sign"),
    "custom_jvp: zeros at 2,000 points": in_jax(
        torch.sin, custom_jvp(jnp.sin, lambda x, dx: 0 * dx), np.linspace(-3, 3, 2000), "jvp", "0 everywhere"
    ),
    "custom_jvp: detached": in_jax(
        torch.sin,
        custom_jvp(jnp.sin, lambda x, dx: jax.lax.stop_gradient(jnp.cos(x)) * dx),
        LINE,
        "jvp of vjp",
        "0 everywhere",
    ),
    "custom_jvp: a name that there is not": in_jax(
        torch.sin, custom_jvp(jnp.sin, lambda x, dx: jnp.cosine(x) * dx), LINE, "jvp", "it raises AttributeError"
    ),
    "in PyTorch: a tangent too many": in_torch(jnp.square, TakesNoTangent, LINE, "jvp", "it raises TypeError"),
    # --- second derivatives
    "detached residual": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: v * jnp.cos(jax.lax.stop_gradient(x))),
        LINE,
        "vjp of vjp",
        "0 everywhere",
    ),
    "in PyTorch: detached residual": in_torch(lambda x: x**3, DetachedResidual, LINE, "vjp of vjp", "0 everywhere"),
    "in PyTorch: an intermediate saved from forward": in_torch(
        lambda x: jnp.sin(x) ** 2, SavesAnIntermediate, LINE, "vjp of vjp", "0 everywhere"
    ),
    "detached cotangent": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: jax.lax.stop_gradient(v) * jnp.cos(x)),
        LINE,
        "vjp of vjp",
        "0 everywhere",
    ),
    "in PyTorch: detached cotangent": in_torch(
        jnp.sin, torch_rule(torch.sin, lambda x, v: v.detach() * torch.cos(x)), LINE, "vjp of vjp", "0 everywhere"
    ),
    "in PyTorch: a jvp of another sign": in_torch(jnp.sin, WrongJvp, LINE, "adjoint", "is .* and ⟨v, Jw⟩ is"),
    "in PyTorch: something else under torch.func": in_torch(
        lambda x: x,
        lambda x: x * (2 if torch._C._functorch.is_functorch_wrapped_tensor(x) else 1),
        LINE,
        "transformed",
        "torch.func, vjp, inputs, against eager: it is 2 times",
    ),
    # --- several arguments
    "swapped arguments": in_jax(
        torch.mul, jax_rule(jnp.multiply, lambda x, y, v: (v * x, v * y)), (LINE, POSITIVE), "vjp", "swapped"
    ),
    "one argument forgotten": in_jax(
        torch.mul, lambda x, y: x * jax.lax.stop_gradient(y), (LINE, POSITIVE), "vjp", "0 everywhere"
    ),
    "in PyTorch: None for an argument": in_torch(
        jnp.multiply, ForgetsAnArgument, (LINE, POSITIVE), "vjp", "0 everywhere"
    ),
    "operands the wrong way round": in_jax(torch.sub, lambda x, y: y - x, (LINE, POSITIVE), "value", "sign is wrong"),
    "a quotient for its inverse": in_jax(torch.div, lambda x, y: y / x, (LINE + 0.01, POSITIVE), "value", "off"),
    "atan for atan2": in_jax(
        torch.atan2, lambda x, y: jnp.arctan(x / y), (POSITIVE, LINE + 0.01), "value", "differs|off"
    ),
    "not summed over a broadcast axis": in_jax(
        TorchScaledSine,
        jax_rule(
            lambda x, scale: scale * jnp.sin(x),
            lambda x, scale, v: (v * scale * jnp.cos(x), (v * jnp.sin(x))[:1]),
        ),
        (LINE + 0.5, np.array([1.5])),
        "vjp",
        "not summed over the axis",
    ),
    "mean over a broadcast axis": in_jax(
        TorchScaledSine,
        jax_rule(
            lambda x, scale: scale * jnp.sin(x),
            lambda x, scale, v: (v * scale * jnp.cos(x), (v * jnp.sin(x)).mean(keepdims=True)),
        ),
        (LINE + 0.5, np.array([1.5])),
        "vjp",
        "and .* is right",
    ),
    "summed over the wrong axis": in_jax(
        lambda x, b: x * b,
        jax_rule(lambda x, b: x * b, lambda x, b, v: (v * b, (v * x).sum(1))),
        (SQUARE, OTHER_SQUARE[0]),
        "vjp",
        "of the largest element off",
    ),
    "a nondifferentiable argument dropped": in_jax(
        lambda x, i: x[i], lambda x, i: x[: len(i)], (LINE, np.array([3, 1, 4])), "value", "off|differs|constant"
    ),
    "a mask dropped": in_jax(
        lambda x, mask: torch.where(mask, x, 0 * x), lambda x, mask: x, (LINE, LINE > 1), "value", "off|differs"
    ),
    # --- matrices
    "transposed gradient": in_jax(
        torch.matmul,
        jax_rule(jnp.matmul, lambda a, b, v: ((v @ b.T).T, a.T @ v)),
        (SQUARE, OTHER_SQUARE),
        "vjp",
        "transposed",
    ),
    "a transpose forgotten": in_jax(
        torch.matmul, jax_rule(jnp.matmul, lambda a, b, v: (v @ b, a.T @ v)), (SQUARE, OTHER_SQUARE), "vjp", "off"
    ),
    "factors the wrong way round": in_jax(torch.matmul, lambda a, b: b @ a, (SQUARE, OTHER_SQUARE), "value", "off"),
    "wrong axis, square": in_jax(lambda x: torch.softmax(x, 1), lambda x: jax.nn.softmax(x, 0), SQUARE, "value", "off"),
    "wrong axis": in_jax(
        lambda x: torch.logsumexp(x, 1), lambda x: jax.scipy.special.logsumexp(x, 0), TALL, "value", "shape"
    ),
    "keepdims": in_jax(lambda x: x.sum(1), lambda x: x.sum(1, keepdims=True), TALL, "value", r"shape is \(5, 1\)"),
    "mean for sum": in_jax(lambda x: (x * x).sum(), lambda x: (x * x).mean(), TALL, "value", "is right"),
    "weights along the wrong axis": in_jax(
        lambda x, w: x * w, lambda x, w: x * w[:, None], (SQUARE, OTHER_SQUARE[0]), "value", "off"
    ),
    "cumulative sum without the element itself": in_jax(
        lambda x: torch.cumsum(x, 0), lambda x: jnp.cumsum(x) - x, LINE, "value", "off"
    ),
    "ties shared, not won": in_jax(lambda x: x.max(1).values, lambda x: jnp.max(x, axis=1), TIES, "vjp", "off|differs"),
    # --- definitions that differ between the libraries
    "variance with another divisor": in_jax(lambda x: x.var(1), lambda x: x.var(1), TALL, "value", "0.857"),
    "epsilon outside the root": in_jax(
        lambda x: x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-2),
        lambda x: x / (jnp.sqrt((x * x).mean(1, keepdims=True)) + 1e-2),
        TALL,
        "value",
        "times|off",
    ),
    "gelu by tanh": in_jax(functional.gelu, jax.nn.gelu, LINE, "value", "off"),
    "another slope": in_jax(
        lambda x: functional.leaky_relu(x, 0.01), lambda x: jax.nn.leaky_relu(x, 0.2), LINE, "value", "off"
    ),
    "remainder of another sign": in_jax(
        lambda x: torch.fmod(x, 1.25), lambda x: jnp.mod(x, 1.25), LINE + 0.01, "value", "off"
    ),
    "rounding half up": in_jax(
        torch.round, lambda x: jnp.floor(x + 0.5), HALF_POINTS, "value", "off|differs", surrogate=True
    ),
    "integer division": in_jax(
        torchp3.legendre_p3, lambda x: x * (5 // 2 * x * x - 3 // 2), LINE, "value", "of the largest element off"
    ),
    "a decimal logarithm": in_jax(torch.log, jnp.log10, POSITIVE, "value", "0.434294 times"),
    "exp for expm1": in_jax(torch.expm1, jnp.exp, LINE, "value", "off by a constant, 1"),
    "outputs swapped": in_jax(
        lambda x: (torch.sin(x), torch.cos(x)), lambda x: (jnp.cos(x), jnp.sin(x)), LINE, "value", "off"
    ),
    "an output's cotangent dropped": in_jax(
        lambda x: (torch.sin(x), torch.cos(x)),
        jax_rule(lambda x: (jnp.sin(x), jnp.cos(x)), lambda x, v: v[0] * jnp.cos(x)),
        LINE,
        "vjp",
        "off",
    ),
    "an output more": in_jax(torch.sin, lambda x: (jnp.sin(x), jnp.cos(x)), LINE, "value", "2 of them, and not 1"),
    # --- dtypes and precision
    "a float32 gradient for a bfloat16 primal": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: v.astype(jnp.float32) * jnp.cos(x.astype(jnp.float32))),
        LINE,
        "dtypes",
        "gradient's dtype is float32",
    ),
    "float32 for bfloat16": in_jax(
        torch.sin,
        lambda x: jnp.sin(x.astype(jnp.promote_types(x.dtype, jnp.float32))),
        LINE,
        "dtypes",
        "dtype is float32",
    ),
    "a constant of six digits": in_jax(lambda x: np.pi * x, lambda x: 3.14159 * x, LINE, "value", "times|float32|off"),
    "wrong in half precision alone": in_jax(
        torch.sin,
        lambda x: jnp.sin(x) * (1.2 if x.dtype == jnp.float16 else 1),
        LINE,
        "low precision",
        "float16, value, .*: it is up to 0.2",
    ),
    # --- complex numbers
    "a conjugate in JAX": in_jax(
        torchp3.legendre_p3, jax_rule(p3, lambda x, v: v * p3_slope(x).conj()), COMPLEX, "vjp", "off|conjugate"
    ),
    "no conjugate in PyTorch": in_torch(
        jaxp3.legendre_p3, torch_rule(p3, lambda x, v: v * p3_slope(x)), COMPLEX, "vjp", "off|conjugate"
    ),
    "the real part alone": in_jax(
        lambda z: z * z, jax_rule(lambda z: z * z, lambda z, v: 2 * v * z.real), COMPLEX, "vjp", "off"
    ),
    "wrong in bfloat16 alone": in_jax(
        torch.sin,
        lambda x: jnp.sin(x) * (1.2 if x.dtype == jnp.bfloat16 else 1),
        LINE,
        "low precision",
        "bfloat16, value, .*: it is up to 0.2",
    ),
    "a gradient wrong in half precision alone": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: v * jnp.cos(x) * (1.2 if x.dtype == jnp.float16 else 1)),
        LINE,
        "low precision",
        "float16, vjp, .*: it is up to 0.2",
    ),
    "half precision refused": in_jax(
        torch.sin,
        lambda x: jnp.sin(x) if x.dtype.itemsize > 2 else 1 / 0,
        LINE,
        "dtypes",
        "the reference, which does not: it raises",
    ),
    # --- kinks and the ends of the numbers
    "another subgradient of relu": in_jax(
        torch.relu,
        jax_rule(jax.nn.relu, lambda x, v: v * (x >= 0)),
        LINE + 0.01,
        "special values",
        "at 0, vjp, .*: it is 1",
    ),
    "relu by maximum": in_jax(
        torch.relu, lambda x: jnp.maximum(x, 0), LINE + 0.01, "special values", "at 0, vjp, inputs, .* it is 0.5"
    ),
    "another subgradient of abs": in_jax(
        torch.abs,
        jax_rule(jnp.abs, lambda x, v: v * jnp.where(x >= 0, 1.0, -1.0).astype(v.dtype)),
        LINE + 0.01,
        "special values",
        "at 0, vjp, .*: it is 1",
    ),
    "a boundary that belongs to the other side": in_jax(
        lambda x: torch.clamp(x, -1, 1),
        jax_rule(lambda x: jnp.clip(x, -1, 1), lambda x, v: v * (jnp.abs(x) < 1)),
        LINE + 0.01,
        "special values",
        "at 1, vjp, inputs, .* it is 0",
        points=(1.0,),
    ),
    "NaN hidden": in_jax(
        torch.sin,
        lambda x: jnp.nan_to_num(jnp.sin(x)),
        LINE,
        "special values",
        "NaN on one side alone",
        edges="fail",
    ),
    "NaN hidden in the second argument": in_jax(
        torch.add,
        lambda x, y: x + jnp.where(jnp.isnan(y), 0, y),
        (LINE, POSITIVE),
        "special values",
        "NaN on one side alone",
        edges="fail",
    ),
    "wrong where float32 ends": in_jax(
        lambda x: x,
        lambda x: jnp.where((jnp.abs(x) > 1e37) & (x.dtype == jnp.float32), 0, x),
        LINE,
        "special values",
        r"at 1\.70141173e\+38, value, output, .* it is 0",
        edges="fail",
    ),
    "wrong for the smallest": in_jax(
        lambda x: x,
        lambda x: jnp.where((x != 0) & (jnp.abs(x) < 1e-30), 1, x),
        LINE,
        "special values",
        r"at 1\.17549435e-38, .*: it is 1",
        edges="fail",
    ),
    "NaN at infinity": in_jax(
        torchp3.legendre_p3,
        lambda x: 0.5 * (5 * x**3 - 3 * x),
        LINE,
        "special values",
        "NaN on one side alone",
        edges="fail",
    ),
    "softplus that overflows": in_jax(
        lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        lambda x: jnp.log(1 + jnp.exp(x)),
        300 * LINE,
        "value",
        "off|differs",
    ),
    # --- shapes, state and modes
    "in PyTorch: the cotangent changed in place": in_torch(
        jnp.sin, torch_rule(torch.sin, lambda x, v: v.mul_(torch.cos(x))), LINE, "inputs intact", "changes it in place"
    ),
    "whole numbers": in_jax(
        torch.round, lambda x: jnp.round(x).astype(int), LINE, "value", "it is of whole numbers or truth values"
    ),
    "a complex number": in_jax(torch.sin, lambda x: jnp.sin(x) + 0j, LINE, "value", "it is complex, and not floating"),
    "0 where one tangent is": in_jax(
        torch.mul, symbolic_product, (LINE, POSITIVE), "transformed", "argument at a time, vjp, .*: it is 0 everywhere"
    ),
    "0 where one cotangent is": in_jax(
        lambda x: (x.sin(), x.cos()),
        symbolic_pair,
        LINE,
        "transformed",
        "argument at a time, vjp, .*: it is 0 everywhere",
    ),
    "zeros that do not vary with the device": in_jax(
        lambda x, y: x @ torch.floor(y),
        jax_rule(lambda x, y: x @ jnp.floor(y), lambda x, y, v: (v @ jnp.floor(y).T, jnp.zeros(y.shape, y.dtype))),
        (SQUARE, OTHER_SQUARE),
        "transformed",
        r"shard_map, vjp, .*: it raises ValueError: Custom VJP bwd rule must produce an output with the same type",
    ),
    "in PyTorch: a backward within the backward": in_torch(
        lambda x, y: y * jnp.sin(x),
        BackwardInBackward,
        (LINE, POSITIVE),
        "transformed",
        "DistributedDataParallel, vjp, .*: it raises RuntimeError: Expected to mark a variable ready only once",
    ),
    "in PyTorch: a gradient shared by equal inputs": in_torch(
        jnp.square, SharedGradient, LINE, "transformed", r"DistributedDataParallel, vjp, .*: it is (0|1)\.5 times"
    ),
    "in PyTorch: a residual shared by equal inputs": in_torch(
        jnp.square, SharedResidual, LINE, "transformed", "DistributedDataParallel, vjp, .*: it raises KeyError"
    ),
    "in PyTorch: vmap of one argument": in_torch(
        jnp.multiply,
        WrongVmapOfOne,
        (LINE, POSITIVE),
        "batched",
        r"vmap, inputs\[0\] batched alone, value, .*: it is 2 times",
    ),
    "in PyTorch: NaN in forward mode at the kink": in_torch(
        jax.nn.relu,
        ForwardMode,
        LINE + 0.01,
        "special values",
        "at 0, jvp, output, .*: it is nan, and the reference's 0",
    ),
    "in PyTorch: forward mode in half precision": in_torch(
        jax.nn.relu, ForwardMode, LINE + 0.01, "low precision", "bfloat16, jvp, .*: it is 2 times"
    ),
    "no sum over an axis that is not there": in_jax(
        torch.mul,
        jax_rule(jnp.multiply, leading_axis_kept),
        (TALL, TALL[0]),
        "vjp",
        r"inputs\[1\], .*: it is",
    ),
    "NaN at the zero vector": in_jax(
        lambda x: torch.linalg.norm(x, dim=-1),
        lambda x: jnp.sqrt((x * x).sum(-1)),
        TALL,
        "special values",
        "inputs times 0, vjp, inputs, .*: it is nan",
    ),
    "a sum of exponentials that is not shifted": in_jax(
        lambda x: torch.logsumexp(x, -1),
        lambda x: jnp.log(jnp.exp(x).sum(-1)),
        TALL,
        "special values",
        "inputs times 1000, value, output, .*: it is inf",
    ),
    "in PyTorch: raises for NaN": in_torch(
        jnp.sin,
        raises_for_nan,
        LINE,
        "special values",
        "of special numbers, value, against the reference, which does not: it raises",
    ),
    "fewer outputs": in_jax(lambda x: (x.sin(), x.cos()), jnp.sin, LINE, "value", "1 of them, and not 2"),
    "rounded to integers": in_jax(torch.sin, lambda x: jnp.sin(x).astype(int), LINE, "value", "off|0 everywhere"),
    "no scalars": in_jax(
        torch.sin, lambda x: jnp.sin(jnp.atleast_1d(x)), np.array(0.5), "value", r"its shape is \(1,\)"
    ),
    "nothing for nothing": in_jax(
        torch.sin,
        lambda x: jnp.sin(x) if x.size else jnp.zeros(1),
        LINE,
        "shapes",
        r"empty, value.*: its shape is \(1,\)",
    ),
    "a transpose too many": in_jax(torch.sin, lambda x: jnp.sin(x).T, TALL, "value", r"its shape is \(7, 5\)"),
    "in PyTorch: a view that there is not": in_torch(
        jnp.sin,
        lambda x: torch.sin(x.view(-1)).view(x.shape),
        TALL,
        "shapes",
        "transposed, value, against the reference, which does not: it raises",
    ),
    "in PyTorch: a view of the cotangent": in_torch(
        jnp.sin,
        torch_rule(torch.sin, lambda x, v: v.view(-1).view(x.shape) * torch.cos(x)),
        RANDOM.normal(size=(3, 5)),
        "shapes",
        "it raises.*contiguous",
    ),
    "in PyTorch: a view of the cotangent, not elementwise": in_torch(
        lambda x: jnp.cumsum(x, 0), CumulativeSumByView, SQUARE, "shapes", "it raises.*contiguous"
    ),
    "in PyTorch: wrong where memory has gaps": in_torch(
        jnp.sin,
        lambda x: torch.sin(x) * (1 if x.is_contiguous() else 2),
        LINE,
        "shapes",
        "strided, value.*: it is 2 times",
    ),
    "the first of each row, broadcast": in_jax(
        torch.mul,
        lambda x, y: x * y if x.shape == y.shape else x[:, :1] * y[:1],
        (TALL, TALL + 3),
        "shapes",
        r"inputs\[1\] as a column",
    ),
    "batch rule in the gradient": in_jax(
        torch.sin,
        jax_rule(jnp.sin, lambda x, v: v * rounds_a_batch(jnp.cos(x))),
        LINE,
        "batched",
        "vmap, (value|vjp), .* against a loop",
    ),
    "in PyTorch: another rule once compiled": in_torch(
        jnp.sin,
        torch_rule(torch.sin, lambda x, v: v * torch.cos(x) * (2 if torch.compiler.is_compiling() else 1)),
        LINE,
        "compiled",
        "torch.compile.*, vjp, inputs, against eager: it is 2 times",
    ),
    "in PyTorch: a gradient asked of the wrong argument": in_torch(
        jnp.multiply,
        AsksTheWrongArgument,
        (LINE, POSITIVE),
        "transformed",
        "argument at a time, vjp, .*: it is 0 everywhere",
    ),
    "in PyTorch: a backward that does not bear None": in_torch(
        lambda x: (jnp.sin(x), jnp.cos(x)), BearsNoNone, LINE, "transformed", "it raises TypeError"
    ),
    "in PyTorch: None for all if None is the first": in_torch(
        lambda x: (jnp.sin(x), jnp.cos(x)),
        GivesUpAtNone,
        LINE,
        "transformed",
        "argument at a time, vjp, .*: it is 0 everywhere",
    ),
    "in PyTorch: a jvp that nested forward mode does not see": in_torch(
        jnp.sin, ForgetsTheOuterTangent, LINE, "jvp of jvp", "it is 0 everywhere"
    ),
    "in PyTorch: a jvp with a detached residual": in_torch(
        jnp.sin, DetachesItsTangent, LINE, "vjp of jvp", "it is 0 everywhere"
    ),
    "batch rule of custom_vmap": in_jax(
        torch.square, wrong_custom_vmap, LINE, "batched", "vmap, (value|vjp), .* against a loop"
    ),
    "in PyTorch: batch rule": in_torch(
        jnp.square, WrongVmapRule, LINE, "batched", "vmap, value, output, against a loop: it is 2 times"
    ),
    "in PyTorch: stale residual": in_torch(jnp.square, StaleResidual, LINE, "repeatable", "stale residual"),
    "in PyTorch: another result each time": in_torch(lambda x: x, count_calls(), LINE, "repeatable", "second call"),
    "in PyTorch: the input changed in place": in_torch(lambda x: 2 * x, in_place, LINE, "inputs intact", "in place"),
    "in PyTorch: a seed that is set": in_torch(
        jnp.sin, sets_a_seed, LINE, "process intact", "value, .*: the call changes PyTorch's random state"
    ),
    "in PyTorch: something else once compiled": in_torch(
        lambda x: x, lambda x: x * (2 if torch.compiler.is_compiling() else 1), LINE, "compiled", "2 times"
    ),
}
