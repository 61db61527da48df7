"""
The conventions that porters confuse: a function of PyTorch run by another one, to see whether that is the difference.

A `TorchFunctionMode` sees every call of PyTorch's functions, and changes those that a convention is about: another
epsilon, the other form of GELU, the mean for the sum.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)
LARGEST_EPSILON = 0.1  # a larger constant that is added is not there to keep a divisor from 0

Call = Callable[..., Any]
Change = Callable[[Call, str, tuple[Any, ...], dict[str, Any]], Any]  # of a function, its name and arguments


class Convention(NamedTuple):
    """
    Another way to compute something.

    Attributes
    ----------
    text : how, as a condition: "gelu has approximate='tanh'"
    change : what a call gives by it, or `NotImplemented` where it is not about that call
    """

    text: str
    change: Change


class Argument(NamedTuple):
    """
    An argument of some of PyTorch's functions, and the values that porters give it.

    Attributes
    ----------
    functions : their names
    name, position : of the argument
    values : that it may have instead
    """

    functions: tuple[str, ...]
    name: str
    position: int
    values: tuple[Any, ...]


CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
LOSSES = (
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "nll_loss", "cross_entropy", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "kl_div", "triplet_margin_loss", "cosine_embedding_loss", "soft_margin_loss",
)  # fmt: skip
REDUCTIONS = ("mean", "sum", "batchmean")
ARGUMENTS = (
    Argument(("layer_norm", "group_norm"), "eps", 4, EPSILONS),
    Argument(("batch_norm", "instance_norm"), "eps", 7, EPSILONS),
    Argument(("rms_norm", "normalize", "cosine_similarity"), "eps", 3, EPSILONS),
    Argument(("gelu",), "approximate", 1, ("none", "tanh")),
    Argument(("softmax", "log_softmax", "cumsum", "glu"), "dim", 1, (-1, -2, 0, 1)),
    Argument(("leaky_relu",), "negative_slope", 1, (0.01, 0.1, 0.2, 0.3)),
    Argument(("elu", "celu"), "alpha", 1, (0.5, 1.0, 2.0)),
    Argument(("softplus",), "beta", 1, (1.0,)),
    Argument(LOSSES, "reduction", 99, REDUCTIONS),
    Argument(("cross_entropy",), "label_smoothing", 99, (0.0, 0.1)),
    Argument(("cross_entropy", "nll_loss"), "ignore_index", 99, (-1, 0, -100)),
    Argument(("smooth_l1_loss",), "beta", 99, (0.5, 1.0)),
    Argument(("huber_loss",), "delta", 99, (0.5, 1.0)),
    Argument(("interpolate",), "align_corners", 4, (True, False)),
    Argument(("interpolate",), "mode", 3, ("nearest", "nearest-exact")),
    Argument(("avg_pool1d", "avg_pool2d"), "count_include_pad", 5, (True, False)),
    Argument(("scaled_dot_product_attention",), "is_causal", 5, (True, False)),
    Argument(("scaled_dot_product_attention",), "scale", 99, (1.0,)),
    Argument(("tril", "triu"), "diagonal", 1, (-1, 0, 1)),
    Argument(("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft"), "norm", 3, ("forward", "backward", "ortho")),
)


def with_argument(argument: Argument, value: Any) -> Change:
    """The change of an argument to a value."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in argument.functions:
            return NotImplemented
        if len(args) > argument.position:
            args = (*args[: argument.position], value, *args[argument.position + 1 :])
            return call(*args, **kwargs)
        return call(*args, **{**kwargs, argument.name: value})

    return change


def with_correction(correction: int) -> Change:
    """The change of a variance's or standard deviation's divisor to n − correction."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in ("var", "std", "var_mean", "std_mean"):
            return NotImplemented
        kept = {key: value for key, value in kwargs.items() if key != "unbiased"}
        return call(*(x for x in args if not isinstance(x, bool)), **{**kept, "correction": correction})

    return change


def for_another(name_of_one: str, name_of_other: str) -> Change:
    """The change of one reduction for another."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(torch, name_of_other)(*args, **kwargs) if name == name_of_one else NotImplemented

    return change


def is_epsilon(x: Any) -> bool:
    """Whether a constant is one that keeps a divisor from 0."""
    return isinstance(x, float) and 0 < x <= LARGEST_EPSILON


def with_epsilon(value: float) -> Change:
    """The change of a small constant that is added, or that is the least value, to another."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in ("add", "__add__", "__radd__", "clamp", "clamp_min") and any(map(is_epsilon, args)):
            return call(*(value if is_epsilon(x) else x for x in args), **kwargs)
        if name in ("clamp", "clamp_min") and is_epsilon(kwargs.get("min")):
            return call(*args, **{**kwargs, "min": value})
        return NotImplemented

    return change


class OutsideTheRoot:
    """The change of √(x + ε) to √x + ε."""

    def __init__(self) -> None:
        """No sum is known."""
        self.sums: dict[int, tuple[Tensor, Tensor, float]] = {}

    def __call__(self, call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Sums with an ε are remembered, and their roots are others."""
        if name in ("add", "__add__", "__radd__") and any(map(is_epsilon, args)):
            (x,) = (y for y in args if isinstance(y, Tensor))
            result = call(*args, **kwargs)
            self.sums[id(result)] = (result, x, next(filter(is_epsilon, args)))  # with it, so that its id stays its own
            return result
        if name in ("sqrt", "rsqrt") and id(args[0]) in self.sums:
            _, x, epsilon = self.sums[id(args[0])]
            root = torch.sqrt(x) + epsilon
            return root if name == "sqrt" else 1 / root
        return NotImplemented


class InsideTheRoot:
    """The change of √x + ε to √(x + ε)."""

    def __init__(self) -> None:
        """No root is known."""
        self.roots: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Roots are remembered, and their sums with an ε are others."""
        if name == "sqrt":
            result = call(*args, **kwargs)
            self.roots[id(result)] = (result, args[0])
            return result
        if name in ("add", "__add__", "__radd__") and any(map(is_epsilon, args)):
            (x,) = (y for y in args if isinstance(y, Tensor))
            if id(x) in self.roots:
                return torch.sqrt(self.roots[id(x)][1] + next(filter(is_epsilon, args)))
        return NotImplemented


def without_scale(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of what is multiplied or divided by a constant, or by the root of one, to what is not."""
    if name in ("mul", "__mul__", "__rmul__", "div", "true_divide", "__truediv__") and len(args) == 2:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if len(tensors) == 1 and any(isinstance(x, float) for x in args):
            return tensors[0]
    return NotImplemented


def with_weight_transposed(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of a square weight to its transpose."""
    if name == "linear" and len(args) > 1 and args[1].ndim == 2 and args[1].shape[0] == args[1].shape[1]:
        return call(args[0], args[1].mT, *args[2:], **kwargs)
    if name in ("matmul", "__matmul__", "mm") and args[1].ndim == 2 and args[1].shape[0] == args[1].shape[1]:
        return call(args[0], args[1].mT)
    return NotImplemented


def with_kernel_flipped(*functions: str) -> Change:
    """The change of a correlation, which PyTorch calls a convolution, to a convolution."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in functions:
            return NotImplemented
        return call(args[0], args[1].flip(tuple(range(2, args[1].ndim))), *args[2:], **kwargs)

    return change


def with_padding(change_by: int, *functions: str) -> Change:
    """The change of a convolution's padding by some elements."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in functions:
            return NotImplemented
        given = args[4] if len(args) > 4 else kwargs.get("padding", 0)
        if isinstance(given, str):
            return NotImplemented
        wider = given + change_by if isinstance(given, int) else tuple(p + change_by for p in given)
        return with_argument(Argument((name,), "padding", 4, ()), wider)(call, name, args, kwargs)

    return change


def with_momentum_inverted(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of the momentum, by which PyTorch multiplies what is new, to the factor of what is old."""
    if name not in ("batch_norm", "instance_norm"):
        return NotImplemented
    momentum = momentum_of(args, kwargs)
    return with_argument(Argument((name,), "momentum", 6, ()), 1 - momentum)(call, name, args, kwargs)


def with_variance_biased(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of the running variance's divisor n − 1 to n."""
    variance = args[2] if len(args) > 2 else kwargs.get("running_var")
    if name != "batch_norm" or variance is None:
        return NotImplemented
    kept = variance * (1 - momentum_of(args, kwargs))
    result = call(*args, **kwargs)
    count = args[0].numel() // args[0].shape[1]
    variance.copy_(kept + (variance - kept) * (count - 1) / count)
    return result


def momentum_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """What batch_norm and instance_norm are called with."""
    return float(args[6] if len(args) > 6 else kwargs.get("momentum", 0.1))


def with_halves_exchanged(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of two halves, as of a gated unit, for each other."""
    if name == "chunk" and 2 in (*args[1:2], kwargs.get("chunks")):
        first, second = call(*args, **kwargs)
        return second, first
    return NotImplemented


def interleaved(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of the halves of the last axis, as of rotary embeddings, to its even and odd elements."""
    if name == "chunk" and 2 in (*args[1:2], kwargs.get("chunks")):
        return args[0][..., 0::2], args[0][..., 1::2]
    if name == "__getitem__" and isinstance(args[1], tuple) and args[1][:1] == (Ellipsis,) and len(args[1]) == 2:
        half, part = args[0].shape[-1] // 2, args[1][1]
        if part in (slice(None, half), slice(half, None)):
            return args[0][..., (1 if part.start else 0) :: 2]
    if name in ("cat", "concat", "concatenate") and len(args[0]) == 2:
        return torch.stack(tuple(args[0]), -1).flatten(-2)
    return NotImplemented


def conventions() -> Iterator[Convention]:
    """Every one, anew, since some remember what they have seen."""
    for argument in ARGUMENTS:
        for value in argument.values:
            for function in argument.functions:
                one = argument._replace(functions=(function,))
                yield Convention(f"{function} has {argument.name}={value!r}", with_argument(one, value))
    for correction in (0, 1):
        yield Convention(f"the variance has correction={correction}", with_correction(correction))
    for value in EPSILONS:
        yield Convention(f"the small constant that is added is {value:g}", with_epsilon(value))
    yield Convention("the small constant is added outside the root", OutsideTheRoot())
    yield Convention("the small constant is added inside the root", InsideTheRoot())
    yield Convention("the mean is a sum", for_another("mean", "sum"))
    yield Convention("the sum is a mean", for_another("sum", "mean"))
    yield Convention("there is no scale", without_scale)
    yield Convention("the weight is transposed", with_weight_transposed)
    yield Convention("the kernel is flipped", with_kernel_flipped(*CONVOLUTIONS))
    for by in (1, -1):
        yield Convention(f"the padding is {'one more' if by > 0 else 'one less'}", with_padding(by, *CONVOLUTIONS))
    yield Convention("momentum multiplies the old state", with_momentum_inverted)
    yield Convention("the running variance has correction=0", with_variance_biased)
    yield Convention("the halves are exchanged", with_halves_exchanged)
    yield Convention("the halves are even and odd elements, as in interleaved rotary embeddings", interleaved)


class ByConvention(TorchFunctionMode):
    """
    While it lasts, PyTorch's functions compute by a convention.

    Attributes
    ----------
    is_on : whether they do so now
    has_part : whether a function has been called that the convention is about
    """

    def __init__(self, convention: Convention) -> None:
        """It has had no part yet."""
        super().__init__()
        self.convention = convention
        self.is_on = True
        self.has_part = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result, or that of the convention."""
        name = getattr(function, "__name__", "")
        with torch._C.DisableTorchFunction():
            changed = self.convention.change(function, name, args, kwargs or {}) if self.is_on else NotImplemented
        if changed is NotImplemented:
            return function(*args, **(kwargs or {}))
        self.has_part = True
        return changed
