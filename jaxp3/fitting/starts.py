"""Many fits at once: one compiled loop, vmapped over the starts."""

from time import perf_counter

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax
from jaxtyping import Float64

from jaxp3.fitting.device import describe_device, find_device
from jaxp3.fitting.optimizer import initial_state
from jaxp3.fitting.schedule import learning_rates
from jaxp3.fitting.train import Carry, make_piece, place, place_coefficients
from p3.fitting.spec import TrainingSpec
from p3.fitting.starts import StartsProgress, StartsResult, chunk_size, require_one_device, train_starts


def fit_starts(
    spec: TrainingSpec, starts: Float64[np.ndarray, "starts 4"], progress: StartsProgress | None = None
) -> StartsResult:
    """
    Fit the specification with JAX and optax from each of many starts, whatever its own is.

    Parameters
    ----------
    spec : what to fit
    starts : a to d of each, as `p3.fitting.starts.random_starts` gives them
    progress : called as progress(fits done, least loss of those) each log_every steps of as many as fit into memory

    Raises
    ------
    InputError
        The points are not finite in the specification's dtype; there is no such device; or it is to be several.

    Warns
    -----
    RuntimeWarning
        As `fit`.
    """
    require_one_device(spec)
    spec = spec.replace({"trace": False})

    def begin(chunk: Float64[np.ndarray, "chunk 4"]) -> Carry:
        coefficients = place_coefficients(spec, dict(zip("abcd", chunk.T, strict=True)))
        return coefficients, initial_state(spec.optimizer, coefficients)

    def end(carry: Carry) -> Float64[np.ndarray, "chunk 4"]:
        return np.asarray(jnp.stack(list(carry[0].values()), axis=1), np.float64)

    device = find_device(spec.device)
    with jax.enable_x64(spec.dtype == "float64"), jax.default_device(device):
        shard = place(spec)
        first = begin(np.resize(starts, (chunk_size(spec, len(starts)), 4)))
        piece, compiled, compile_seconds = make_piece(spec, first, shard)
        clock = perf_counter()
        coefficients, losses = train_starts(spec, piece, begin, end, starts, learning_rates(spec), progress)
        seconds = perf_counter() - clock
    return StartsResult(
        backend="jax",
        spec=spec,
        device=describe_device(device),
        compiled=compiled,
        starts=starts,
        coefficients=coefficients,
        losses=losses,
        seconds={"compile": compile_seconds, "run": seconds},
        versions={"jax": jax.__version__, "jaxlib": jaxlib.version.__version__, "optax": optax.__version__},
    )
