"""What the checker of models asks of a framework: a model's parameters, and a run that a tape watches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from p3.parity.models.links import Parameter
from p3.parity.models.tape import Tape
from p3.parity.tree import Structure

Arrays = Mapping[str, np.ndarray]  # by path
Cotangents = Callable[[Arrays], Arrays]  # of some of the outputs, by their paths


class Run(NamedTuple):
    """
    What a model computes of some inputs.

    Attributes
    ----------
    outputs : the arrays that it returns, by path: `output`, `output[0]`, `output["logits"]`
    gradients : of the sum of cotangent × output with respect to each parameter; empty without cotangents
    input_gradients : the same with respect to each floating input, by its number
    states : the arrays with no gradient, such as running statistics, after the run
    """

    outputs: Arrays
    gradients: Arrays
    input_gradients: Mapping[int, np.ndarray]
    states: Arrays


class Mode(Protocol):
    """A context manager in which a model computes by another convention, as long as `is_on`."""

    is_on: bool

    def __enter__(self) -> object:
        """Begin."""

    def __exit__(self, *raised: Any) -> bool | None:
        """End."""


class Module(ABC):
    """
    A model in some framework. It is never changed: each run works on a copy.

    Attributes
    ----------
    name : of its class or function
    framework : the framework's name and version
    is_torch : whether that is PyTorch
    library : what its layers are of: "torch", "nnx", "linen", "equinox" or "function"
    ways : the ways in which it may have to be called: as it is, or mapped over a batch
    """

    name: str
    framework: str
    library: str
    is_torch: bool
    ways: tuple[str, ...] = ("",)

    @abstractmethod
    def parameters(self, kinds: Mapping[str, str]) -> tuple[Parameter, ...]:
        """The floating arrays that the model holds, in its order; kinds has the classes of layers that were called."""

    @abstractmethod
    def run(
        self,
        structure: Structure,
        inputs: tuple[np.ndarray, ...],
        precision: str,
        values: Arrays | None = None,
        tape: Tape | None = None,
        cotangents: Cotangents | None = None,
        mode: AbstractContextManager[object] | None = None,
        way: str = "",
    ) -> Run:
        """
        Run it forward, and backward where there are cotangents.

        Parameters
        ----------
        structure, inputs : the arguments of the model
        precision : of the parameters and inputs, "float64" or "float32"; "" for what they are
        values : arrays that replace its parameters and states, by path
        tape : sees the arrays of the layers
        cotangents : called with the outputs, returns their cotangents
        mode : the mode that the forward pass runs in
        way : one of `ways`
        """

    @abstractmethod
    def with_values(self, values: Arrays) -> Any:
        """The model with other numbers at some paths; the same object where the library's models can be changed."""

    def conventions(self, run: Callable[[Mode], object]) -> Iterator[tuple[str, Mode]]:
        """
        The conventions that porters confuse: each in words, and as a mode in which the model computes by it.

        Parameters
        ----------
        run : called with a mode, runs the model in it; so it is seen which conventions apply to the layer in question
        """
        yield from ()


def parents(layer: str, kinds: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The layers that contain a layer, the outermost first, with their classes."""
    names = layer.split(".")
    paths = [".".join(names[:k]) for k in range(1, len(names))]
    return tuple((path, kinds[path]) for path in paths if path in kinds)
