"""
What porters of models confuse besides the conventions of functions: activations, masks, biases, pooling and padding.

They are tried on PyTorch's side where a layer or the code between layers differs, as those of `conventions` are.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchp3.conventions import (
    CONVOLUTIONS,
    Argument,
    Call,
    Change,
    Convention,
    conventions,
    for_another,
    with_argument,
    with_kernel_flipped,
    with_padding,
)

MOMENTA = (0.001, 0.01, 0.1, 0.9, 0.99)  # of running statistics, by either meaning
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus", "relu6", "hardswish")
PRODUCTS = ("mul", "__mul__", "__rmul__", "multiply")
MASKED = {  # the arguments that are masks
    "scaled_dot_product_attention": ("attn_mask",),
    "multi_head_attention_forward": ("attn_mask", "key_padding_mask"),
}
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
BIASES = {"linear": 2, "conv1d": 2, "conv2d": 2, "conv3d": 2, "layer_norm": 3}  # where a function has its bias


def with_activation(one: str, other: str) -> Change:
    """The change of one activation to another."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(torch.nn.functional, other)(args[0]) if name.rstrip("_") == one else NotImplemented

    return change


def with_heads_exchanged(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of an axis that is split in (heads, size) to one that is split in (size, heads)."""
    shape = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    if name not in ("view", "reshape", "unflatten") or len(shape) != 4 or args[0].ndim != 3:
        return NotImplemented
    *front, heads, size = shape
    size = args[0].shape[-1] // heads if size == -1 else size
    heads = args[0].shape[-1] // size if heads == -1 else heads
    return args[0].reshape(*front, size, heads).transpose(-1, -2)


def with_mask_shifted(by: int) -> Change:
    """The change of a square mask, as of causal attention, by one place."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "scaled_dot_product_attention" and kwargs.get("is_causal"):
            size = args[0].shape[-2]
            mask = torch.ones(size, size, dtype=torch.bool).tril(by)
            return call(*args, **{**kwargs, "is_causal": False, "attn_mask": mask})
        if name not in ("masked_fill", "where", "masked_fill_"):
            return NotImplemented
        mask = args[0] if name == "where" else args[1]
        if mask.ndim < 2 or mask.shape[-1] != mask.shape[-2]:
            return NotImplemented
        # Along the diagonals a causal mask is constant, and the corners that are rolled in are what is beyond.
        shifted = mask.roll(by, -1)
        edge = (..., 0) if by > 0 else (..., -1)
        shifted[edge] = mask[edge]
        return call(shifted, *args[1:]) if name == "where" else call(args[0], shifted, *args[2:])

    return change


def with_other_pool(one: str, other: str) -> Change:
    """The change of one pooling to another."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name.removeprefix("_").removesuffix("_with_indices") != one:
            return NotImplemented
        known = ("kernel_size", "stride", "padding", "ceil_mode")
        names = dict(zip(("kernel_size", "stride", "padding"), args[1:4], strict=False))
        given = names | {key: value for key, value in kwargs.items() if key in known}
        return getattr(torch.nn.functional, other)(args[0], **given)

    return change


def with_other_adaptive_pool(one: str, other: str) -> Change:
    """The change of one adaptive pooling to another."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(torch.nn.functional, other)(*args, **kwargs) if name == one else NotImplemented

    return change


def with_same_padding(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of a convolution's padding to that by which TensorFlow and flax have ⌈n / stride⌉ results."""
    if name not in CONVOLUTIONS:
        return NotImplemented
    x, weight = args[:2]
    count = x.ndim - 2

    def each(value: int | Sequence[int]) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(values * (count // len(values)))

    stride = each(args[3] if len(args) > 3 else kwargs.get("stride", 1))
    dilation = each(args[5] if len(args) > 5 else kwargs.get("dilation", 1))
    pads: list[int] = []
    for n, k, s, d in zip(x.shape[2:], weight.shape[2:], stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads = [total // 2, total - total // 2, *pads]  # the last axis first
    padded = torch.nn.functional.pad(x, pads)
    return with_argument(Argument((name,), "padding", 4, ()), 0)(call, name, (padded, *args[1:]), kwargs)


def with_parts_reversed(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of the order in which tensors are concatenated."""
    if name not in ("cat", "concat", "concatenate") or not isinstance(args[0], tuple | list):
        return NotImplemented
    return call(list(args[0])[::-1], *args[1:], **kwargs)


def without_mask(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of what is masked to what is not."""
    if name in ("masked_fill", "masked_fill_"):
        return args[0]
    if name in MASKED and any(kwargs.get(mask) is not None for mask in MASKED[name]):
        return call(*args, **{**kwargs, **dict.fromkeys(MASKED[name])})
    factors = [x for x in args[:2] if isinstance(x, Tensor)]
    if name in PRODUCTS and any(map(is_mask, factors)):
        return next(x for x in args[:2] if not (isinstance(x, Tensor) and is_mask(x)))
    return NotImplemented


def with_mask_inverted(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The change of a mask's true to false, and of false to true."""
    if name in ("masked_fill", "masked_fill_"):
        return call(args[0], ~args[1], *args[2:])
    if name in MASKED and any(kwargs.get(mask) is not None for mask in MASKED[name]):
        given = {mask: kwargs.get(mask) for mask in MASKED[name]}
        return call(
            *args, **{**kwargs, **{k: ~x if x is not None and x.dtype == torch.bool else x for k, x in given.items()}}
        )
    if name in PRODUCTS and any(isinstance(x, Tensor) and is_mask(x) for x in args[:2]):
        return call(*(1 - x.to(torch.get_default_dtype()) if isinstance(x, Tensor) and is_mask(x) else x for x in args))
    return NotImplemented


def is_mask(x: Tensor) -> bool:
    """Whether a tensor is of truth values, or of the numbers 0 and 1, with both among them."""
    if x.dtype == torch.bool:
        return True
    return x.numel() > 1 and bool(((x == 0) | (x == 1)).all()) and bool((x == 0).any()) and bool((x == 1).any())


def without_call(*functions: str) -> Change:
    """The change of what a function does to nothing."""

    def change(call: Call, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] if name in functions else NotImplemented

    return change


def confusions() -> Iterator[Convention]:
    """What else is confused in models."""
    yield from conventions()
    yield Convention("the kernel is flipped", with_kernel_flipped(*TRANSPOSED))
    for by in (1, -1):
        yield Convention(f"the padding is {'one more' if by > 0 else 'one less'}", with_padding(by, *TRANSPOSED))
    for momentum in MOMENTA:
        argument = Argument(("batch_norm", "instance_norm"), "momentum", 6, ())
        yield Convention(f"batch_norm has momentum={momentum}", with_argument(argument, momentum))
    for training in (True, False):
        argument = Argument(("batch_norm",), "training", 5, ())
        yield Convention(f"batch_norm has training={training}", with_argument(argument, training))
    for name, position in BIASES.items():
        yield Convention(f"{name} has no bias", with_argument(Argument((name,), "bias", position, ()), None))
    for one in ACTIVATIONS:
        for other in ACTIVATIONS:
            if one != other:
                yield Convention(f"{one} is {other}", with_activation(one, other))
    yield Convention("heads are the last axis, and not the last but one", with_heads_exchanged)
    for by in (1, -1):
        yield Convention(f"the mask is shifted by one ({'more' if by > 0 else 'less'})", with_mask_shifted(by))
    for rank in (1, 2, 3):
        for one, other in (("max", "avg"), ("avg", "max")):
            names = f"{one}_pool{rank}d", f"{other}_pool{rank}d"
            yield Convention(f"{names[0]} is {names[1]}", with_other_pool(*names))
    for rank in (1, 2, 3):
        for one, other in (("max", "avg"), ("avg", "max")):
            names = f"adaptive_{one}_pool{rank}d", f"adaptive_{other}_pool{rank}d"
            yield Convention(f"{names[0]} is {names[1]}", with_other_adaptive_pool(*names))
    yield Convention("the mean is the maximum", for_another("mean", "amax"))
    yield Convention("the padding is SAME, which is not symmetric where the stride is more than 1", with_same_padding)
    yield Convention("what is concatenated is in the opposite order", with_parts_reversed)
    yield Convention("there is no mask", without_mask)
    yield Convention("the mask has the opposite meaning", with_mask_inverted)
    yield Convention("there is no dropout", without_call("dropout"))
    yield Convention("there is no layer_norm", without_call("layer_norm"))


class Applying(TorchFunctionMode):
    """
    While it lasts, it is found out which conventions are about the functions that are called.

    Attributes
    ----------
    is_on : whether that is looked for now
    numbers : of the conventions that are about one
    """

    def __init__(self, conventions: Iterable[Convention]) -> None:
        """None is known to be."""
        super().__init__()
        self.conventions = list(conventions)
        self.is_on = True
        self.numbers: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's own result."""
        name = getattr(function, "__name__", "")
        if self.is_on:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for number, convention in enumerate(self.conventions):
                    with suppress(Exception):  # by a convention, shapes may be others
                        if convention.change(function, name, args, kwargs or {}) is not NotImplemented:
                            self.numbers.add(number)
        return function(*args, **(kwargs or {}))
