"""The device of the specification, as JAX's own."""

import jax

from p3.errors import InputError


def find_device(name: str) -> jax.Device:
    """
    "cpu", "gpu", or "auto" for a GPU where JAX can use one and the CPU where not.

    Raises
    ------
    InputError
        "gpu", and JAX can use none.
    """
    if name != "cpu":
        try:
            return jax.local_devices(backend="cuda")[0]
        except RuntimeError:
            if name == "gpu":
                raise InputError(
                    f"device = 'gpu', but JAX {jax.__version__} finds no CUDA GPU; use 'cpu' or 'auto', "
                    'or install "jax[cuda13]" on a machine with an NVIDIA GPU and driver'
                ) from None
    return jax.local_devices(backend="cpu")[0]


def describe_device(device: jax.Device) -> str:
    """The device's name for a result."""
    return str(device.device_kind)
