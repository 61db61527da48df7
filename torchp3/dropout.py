"""What dropouts keep, which a tape sees, and may replace by what another model has kept."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from p3.parity.models.tape import Mask, Tape
from torchp3.function import from_array, to_array

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")


@contextmanager
def masks_seen(tape: Tape | None) -> Iterator[None]:
    """While it lasts, a tape sees what dropouts keep in this thread."""
    with nullcontext() if tape is None else MasksSeen(tape):
        yield


class MasksSeen(TorchFunctionMode):
    """While it lasts, a tape sees what dropouts keep, and may have them keep something else."""

    def __init__(self, tape: Tape) -> None:
        """By which tape."""
        super().__init__()
        self.tape = tape

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result; of a dropout, what is kept times 1/(1 − p)."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in DROPOUTS:
            bound = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            p = bound.get("p", 0.5)
            if bound.get("training", True) and 0 < p < 1:
                return self.dropped(function, bound["input"], p)
        if name == "scaled_dot_product_attention":
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            bound = dict(zip(names, args, strict=False)) | kwargs
            if bound.get("dropout_p", 0.0):
                return self.attention(**bound)
        return function(*args, **kwargs)

    def dropped(self, function: Any, x: Tensor, p: float) -> Tensor:
        """A dropout."""
        kept = function(torch.ones_like(x), p, True) != 0
        value = self.tape.drawn(Mask(to_array(kept), 1 - p))
        mask = kept if value is None else from_array(np.array(value))
        return x * mask / (1 - p)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention in steps, of which the dropout is one."""
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
        return self.dropped(functional.dropout, scores.softmax(-1), dropout_p) @ value
