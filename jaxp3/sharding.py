"""JAX's functions on several devices: of a copy of the arguments on each, and of arguments that are divided."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

JaxArrays = tuple[Array, ...]
Transform = Callable[..., JaxArrays]  # of one group of arrays or several


def all_devices() -> Mesh:
    """The devices of this process, in a row."""
    return Mesh(np.array(jax.local_devices()), ("devices",))


def on_each_device(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """
    The mean of what each device computes by f of a copy of the arguments, which is f, by `jax.shard_map`.

    Each pulls back an equal part of the cotangent, and the gradients add up. On one device too, what f and its rules
    compute of their arguments is of types that vary over the mesh, and what they make of nothing is not.
    """
    mesh = all_devices()

    def copied(x: Array) -> Array:
        return jnp.broadcast_to(x, (mesh.size, *x.shape))

    def of_copy(*copies: Array) -> JaxArrays:
        return tuple(y[None] for y in f(tuple(x[0] for x in copies)))

    mapped = jax.shard_map(of_copy, mesh=mesh, in_specs=PartitionSpec("devices"), out_specs=PartitionSpec("devices"))
    return lambda inputs: tuple(
        y.mean(0) if jnp.issubdtype(y.dtype, jnp.inexact) else y[0] for y in mapped(*map(copied, inputs))
    )


def sharded(transform: Callable[..., JaxArrays]) -> Callable[..., JaxArrays]:
    """The transform compiled for arguments that are divided among all devices, each along one axis if it has one."""
    mesh = all_devices()

    def divided(x: Array) -> Array:
        long = [axis for axis, length in enumerate(x.shape) if length >= mesh.size]
        even = [axis for axis in long if x.shape[axis] % mesh.size == 0]
        spec = PartitionSpec(*(None,) * (even or long)[0], "devices") if long else PartitionSpec()
        constrained: Array = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
        return constrained

    def of_divided(inputs: JaxArrays, *others: JaxArrays) -> JaxArrays:
        if not any(length >= mesh.size for x in inputs for length in x.shape):
            raise NotImplementedError(f"no input has an axis of {mesh.size}, to be divided among as many devices")
        return transform(*jax.tree.map(divided, (inputs, *others)))

    return jax.jit(of_divided, out_shardings=NamedSharding(mesh, PartitionSpec()))
