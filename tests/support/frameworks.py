"""The same questions to both frameworks, with NumPy arrays in and out."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

import jaxp3.fitting.train
import torchp3.fitting.train
from p3 import FitResult, TrainingSpec
from p3.backends import BackendName

Function = Callable[[np.ndarray], np.ndarray]


def to_torch(x: np.ndarray) -> torch.Tensor:
    """The same array in PyTorch, which NumPy's bfloat16 is strange to, as a C-contiguous copy."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.tensor(x.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(x)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """The same array in NumPy."""
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.resolve_conj().numpy()


@cache
def torch_derivative(order: int, compiled: bool) -> Function:
    """The order-th derivative of torchp3.legendre_p3, elementwise."""

    def differentiate(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0]

    function = torchp3.legendre_p3
    for _ in range(order):
        function = differentiate(function)
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=True, recompile_limit=64)
    return lambda x: to_numpy(function(to_torch(x)))


@cache
def jax_derivative(order: int, compiled: bool) -> Function:
    """The order-th derivative of jaxp3.legendre_p3, elementwise."""

    def differentiate(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]

    function: Any = jaxp3.legendre_p3
    for _ in range(order):
        function = differentiate(function)
    if compiled:
        function = jax.jit(function)

    def call(x: np.ndarray) -> np.ndarray:
        with jax.enable_x64(x.dtype in (np.float64, np.complex128)):
            return np.asarray(function(jnp.asarray(x)))

    return call


def operator_derivative(backend: BackendName, order: int, compiled: bool) -> Function:
    """The order-th derivative of the backend's legendre_p3, elementwise; its values for order 0."""
    return {"torch": torch_derivative, "jax": jax_derivative}[backend](order, compiled)


def loss_and_gradients(
    backend: BackendName, coefficients: dict[str, float], x: np.ndarray, y: np.ndarray
) -> tuple[float, dict[str, float]]:
    """The model's loss and its four gradients, as `fit` computes them."""
    if backend == "torch":
        tensors = {name: torch.tensor(value, dtype=torch.from_numpy(x).dtype) for name, value in coefficients.items()}
        value, of_tensors = torchp3.fitting.train.loss_and_gradients(tensors, torch.from_numpy(x), torch.from_numpy(y))
        return value.item(), {name: gradient.item() for name, gradient in of_tensors.items()}
    with jax.enable_x64(x.dtype == np.float64):
        arrays = {name: jnp.asarray(value, x.dtype) for name, value in coefficients.items()}
        value, gradients = jaxp3.fitting.train.loss_and_gradients(arrays, jnp.asarray(x), jnp.asarray(y))
        return float(value), {name: float(gradient) for name, gradient in gradients.items()}


def fitted_together(spec: TrainingSpec) -> list[FitResult]:
    """PyTorch's fit and JAX's, as the specification says: compiled, or eager."""
    results = [torchp3.fit(spec), jaxp3.fit(spec)]
    assert all(result.compiled == spec.jit for result in results)
    return results
