"""JAX's side of the table of modes: its transforms under the names that both sides share, and modes of its own."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, jacfwd, jacrev, vmap  # noqa: F401 - as modes.py takes them from either side
from jax.experimental import jet
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxp3
from jaxp3 import operator

Function = Callable[[Array], Array]

OPERATORS = {
    "jaxp3.legendre_p3": jaxp3.legendre_p3,
    "jaxp3.legendre_p3_custom_jvp": jaxp3.legendre_p3_custom_jvp,
}


def array(x: np.ndarray) -> Array:
    """The points as an array of their own."""
    return jnp.array(x)


def reverse(f: Function) -> Function:
    """The derivative of an elementwise function in reverse mode."""
    return jax.grad(lambda x: f(x).sum())


def forward(f: Function) -> Function:
    """The derivative of an elementwise function in forward mode."""
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def pullback(f: Function) -> Function:
    """The same, by the function that `vjp` returns."""
    return lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]


def linearize(f: Function) -> Function:
    """The same, by the function that `linearize` returns."""
    return lambda x: jax.linearize(f, x)[1](jnp.ones_like(x))


def compiled(f: Function) -> Function:
    """As users compile it."""
    return jax.jit(f)


def forget_compiled() -> None:
    """Have what was compiled before traced anew."""
    jax.clear_caches()


def scanned(f: Function) -> Function:
    """Each element in turn, by scan."""
    return lambda x: jax.lax.scan(lambda count, x: (count + 1, f(x)), 0, x)[1]


def conditional(f: Function) -> Function:
    """One of two branches, both of which call f."""
    return lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: 1.0 * f(x), x)


def repeated(f: Function) -> Function:
    """F in the body of a while loop that runs once."""
    return lambda x: jax.lax.while_loop(lambda state: state[0] < 1, lambda state: (state[0] + 1, f(state[1])), (0, x))[
        1
    ]


def mesh() -> jax.sharding.Mesh:
    """The first two devices."""
    return jax.make_mesh((2,), ("points",), (AxisType.Auto,), devices=jax.devices()[:2])


def sharded_map(f: Function) -> Function:
    """Half of the points on each of two devices."""
    return jax.shard_map(f, mesh=mesh(), in_specs=PartitionSpec("points"), out_specs=PartitionSpec("points"))


def sharded(f: Function) -> Function:
    """An input that lies on two devices, and an output that stays there."""

    def call(x: Array) -> Array:
        out = jax.jit(f)(jax.device_put(x, NamedSharding(mesh(), PartitionSpec("points"))))
        assert len(out.sharding.device_set) == 2
        return out

    return call


def weights(x: Array) -> Array:
    """For two copies of x, with the sum 1: what each device pulls back of the cotangent."""
    return jnp.array([0.75, 0.25])[:, None] * jnp.ones_like(x)


def weighted(f: Function) -> Callable[[Array, Array], Array]:
    """Σ w·f(x), where w has one more axis than x: a loss of parameters x and data w."""
    return lambda x, w: (w * f(x * jnp.ones_like(w))).sum()


def data_parallel(f: Function) -> Function:
    """The gradient for parameters that are whole on each of two devices, of data that are divided among them."""

    def derivative(x: Array) -> Array:
        whole, divided = (NamedSharding(mesh(), PartitionSpec(*axes)) for axes in ((), ("points",)))
        gradient = jax.jit(jax.grad(weighted(f)), in_shardings=(whole, divided), out_shardings=whole)
        assert "all-reduce" in gradient.lower(x, weights(x)).compile().as_text()
        return gradient(x, weights(x))

    return derivative


def data_parallel_map(f: Function) -> Function:
    """The same by shard_map, in which each device has its own part of the loss, and psum adds the parts up."""

    def gradient(x: Array, w: Array) -> Array:
        return jax.grad(lambda x: jax.lax.psum(weighted(f)(x, w), "points"))(x)

    specs = PartitionSpec(), PartitionSpec("points")
    mapped = jax.shard_map(gradient, mesh=mesh(), in_specs=specs, out_specs=PartitionSpec())
    return lambda x: mapped(x, weights(x))


def exported(f: Function, vjp_order: int = 0) -> Function:
    """Exported, serialized and reloaded."""

    def call(x: Array) -> Array:
        serialized = jax.export.export(jax.jit(f))(jax.ShapeDtypeStruct(x.shape, x.dtype)).serialize(vjp_order)
        return jax.export.deserialize(serialized).call(x)

    return call


def donated(f: Function) -> Function:
    """The input's buffer given away for the output."""

    def call(x: Array) -> Array:
        given = x.copy()
        out = jax.jit(f, donate_argnums=0)(given)
        assert given.is_deleted()
        return out

    return call


def with_x64(enabled: bool, f: Function) -> Function:
    """With 64-bit types switched on or off around it."""

    def call(x: Array) -> Array:
        with jax.enable_x64(enabled):
            dtype = jnp.float64 if enabled else jnp.float32
            out = f(jnp.asarray(np.asarray(x), dtype))
            assert out.dtype == dtype
            return jnp.asarray(out, x.dtype)

    return call


def shape_only(f: Function) -> Function:
    """Zeros where the shape and dtype come out right, which is all that eval_shape finds."""

    def call(x: Array) -> Array:
        out = jax.eval_shape(f, x)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        return jnp.zeros_like(x)

    return call


def taylor(f: Function) -> Function:
    """The first derivative by Taylor mode."""
    return lambda x: jet.jet(f, (x,), ((jnp.ones_like(x),),))[1][0]


def own_modes(f: Function) -> dict[str, tuple[str, Function]]:
    """The modes that only JAX has: their names, what they should come to, and how to get there."""
    thrice = reverse(reverse(reverse(exported(f, vjp_order=3))))
    return {
        "jvp of jit": ("first derivative", forward(jax.jit(f))),
        "grad of scan": ("first derivative", reverse(scanned(f))),
        "grad in scan": ("first derivative", scanned(jax.grad(f))),
        "jvp of scan": ("first derivative", forward(scanned(f))),
        "grad of map": ("first derivative", reverse(partial(jax.lax.map, f))),
        "grad of cond": ("first derivative", reverse(conditional(f))),
        "while": ("value", repeated(f)),
        "grad in while": ("first derivative", repeated(reverse(f))),
        "jvp of while": ("first derivative", forward(repeated(f))),
        "checkpoint": ("first derivative", reverse(jax.checkpoint(f))),
        "checkpoint, twice": ("second derivative", reverse(reverse(jax.checkpoint(f)))),
        "shard_map, two devices": ("value", sharded_map(f)),
        "grad of shard_map": ("first derivative", reverse(sharded_map(f))),
        "grad in shard_map": ("first derivative", sharded_map(reverse(f))),
        "grad in shard_map, psum of the loss": ("first derivative", data_parallel_map(f)),
        "vmap of grad in shard_map": ("first derivative", sharded_map(vmap(reverse(f)))),
        "grad in scan in shard_map": ("first derivative", sharded_map(scanned(jax.grad(f)))),
        "NamedSharding, two devices": ("value", sharded(f)),
        "grad, NamedSharding": ("first derivative", sharded(reverse(f))),
        "grad, NamedSharding, of parameters that both devices have": ("first derivative", data_parallel(f)),
        "export, reload": ("value", exported(f)),
        "export, reload, grad, vjp_order 1": ("first derivative", reverse(exported(f, vjp_order=1))),
        "export, reload, grad thrice, vjp_order 3": ("third derivative", thrice),
        "export of grad": ("first derivative", exported(reverse(f))),
        "donated buffer": ("value", donated(f)),
        "grad, donated buffer": ("first derivative", donated(reverse(f))),
        "grad, x64 on": ("first derivative", with_x64(True, reverse(f))),
        "grad, x64 off": ("first derivative", with_x64(False, reverse(f))),
        "eval_shape": ("shape", shape_only(f)),
        "eval_shape of grad": ("shape", shape_only(reverse(f))),
        "jet": ("first derivative", taylor(f)),
    }


__all__ = ["operator"]  # the module whose rule modes.py marks
