"""What dropouts keep, which a tape sees, and may replace by what another model has kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxp3.tap import TAPE, in_each_run, shown
from p3.parity.models.tape import Mask, Tape

DRAWING = RLock()  # of DRAWERS
DRAWERS: list[Tape] = []  # that see masks in some thread
BERNOULLI = jax.random.bernoulli


@contextmanager
def masks_seen(tape: Tape | None) -> Iterator[None]:
    """While it lasts, a tape sees what dropouts keep in this thread."""
    if tape is None:
        yield
        return
    with DRAWING:
        DRAWERS.append(tape)
        jax.random.bernoulli = bernoulli  # type: ignore[assignment]
    try:
        yield
    finally:
        with DRAWING:
            DRAWERS.remove(tape)
            if not DRAWERS:
                jax.random.bernoulli = BERNOULLI


def bernoulli(key: Array, p: Any = 0.5, *args: Any, **kwargs: Any) -> Array:
    """`jax.random.bernoulli`, or the mask that the tape of this thread has."""
    mask = BERNOULLI(key, p, *args, **kwargs)
    if TAPE.get() is None or jnp.ndim(p):
        return mask

    def see(tape: Tape, mask: Array, probability: Array) -> tuple[Array | np.ndarray, int]:
        # The same for all examples of a batch.
        value = tape.drawn(Mask(np.asarray(mask), float(np.ravel(probability)[0])))
        return mask if value is None else value, 0

    with in_each_run():
        drawn: Array = shown.bind(mask, jnp.asarray(p), see=see)[0]
    return drawn
