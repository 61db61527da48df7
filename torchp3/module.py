"""PyTorch's modules as models that the checker can take: NumPy arrays in and out, and layers that a tape watches."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from p3.errors import InputError
from p3.parity.models.links import Parameter
from p3.parity.models.module import Arrays, Cotangents, Mode, Module, Run, parents
from p3.parity.models.tape import Tape
from p3.parity.tree import Structure, leaves
from torchp3.confusions import Applying, confusions
from torchp3.conventions import ByConvention
from torchp3.dropout import masks_seen
from torchp3.function import from_array, from_arrays, is_inexact, pull_back, to_array
from torchp3.tap import TAPE, watched

SEED = 0  # of what a model draws, as for dropout


def itself(model: Any) -> Any:
    """The model."""
    return model


def as_module(model: Any) -> "ArrayModule":
    """
    Make a model of a module, for `p3.check_model`.

    Raises
    ------
    InputError
        It is no `torch.nn.Module`.

    Examples
    --------
    >>> as_module(torch.nn.Linear(2, 3)).name
    'Linear'
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"torch= is {type(model).__name__}; give a torch.nn.Module")
    return ArrayModule(model)


@dataclass(frozen=True, eq=False)
class ArrayModule(Module):
    """
    A `torch.nn.Module` as a `p3.parity.Module`.

    `calling` makes what is called with the inputs of the module: the module itself, or a loss of it.
    """

    model: nn.Module
    is_torch: bool = True
    calling: Callable[[Any], Any] = itself

    @property
    def name(self) -> str:  # type: ignore[override]
        """The module's class."""
        return type(self.model).__name__

    @property
    def library(self) -> str:  # type: ignore[override]
        """What its layers are of."""
        return "torch"

    @property
    def framework(self) -> str:  # type: ignore[override]
        """The framework's name and version."""
        return f"PyTorch {torch.__version__}"

    def parameters(self, kinds: Mapping[str, str]) -> tuple[Parameter, ...]:
        """The module's floating parameters, and its persistent floating buffers."""
        classes = {path: kind_of(layer) for path, layer in self.model.named_modules(remove_duplicate=False)}
        passing = {
            f"{path}.{name}" if path else name
            for path, layer in self.model.named_modules()
            for name in layer._non_persistent_buffers_set
        }
        named: dict[str, tuple[Tensor, bool]] = {
            path: (x, False) for path, x in self.model.named_parameters(remove_duplicate=False)
        }
        named |= {path: (x, True) for path, x in self.model.named_buffers() if path not in passing}
        paths: dict[int, list[str]] = {}
        for path, (x, _) in named.items():
            paths.setdefault(id(x), []).append(path)
        found = []
        for path, *aliases in paths.values():
            x, is_state = named[path]
            if is_inexact(x):
                layer = path.rpartition(".")[0]
                around = parents(layer, classes)
                found.append(Parameter(path, layer, classes[layer], to_array(x), is_state, tuple(aliases), around))
        return tuple(found)

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
        """Run a copy of the module, and go back through it with autograd."""
        module = copy.deepcopy(self.model)
        if precision:
            module.to(getattr(torch, precision))
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for path, value in (values or {}).items():
                named[path].copy_(from_array(np.array(value)))
        tensors = list(from_arrays(tuple(np.array(x) for x in inputs)))
        parameters = {path: x for path, x in module.named_parameters() if is_inexact(x)}
        moving = {i: x.requires_grad_() for i, x in enumerate(tensors) if cotangents is not None and is_inexact(x)}
        for x in parameters.values():
            x.requires_grad_(cotangents is not None)
        if tape is not None:
            watch(module, tape)
        reset = TAPE.set(tape)
        try:
            with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(cotangents is not None):
                torch.manual_seed(SEED)
                with masks_seen(tape), mode or nullcontext():
                    outputs = arrays_of(structure.call(self.calling(module), tensors, {}))
                arrays = {path: to_array(y).copy() for path, y in outputs.items()}
                gradients: tuple[Tensor, ...] = ()
                if cotangents is not None:
                    if tape is not None:
                        tape.is_backward = True
                    given = cotangents(arrays)
                    gradients = pull_back(
                        tuple(outputs[path] for path in given),
                        (*parameters.values(), *moving.values()),
                        tuple(from_array(np.array(v)) for v in given.values()),
                    )
        finally:
            TAPE.reset(reset)
        found = [to_array(g).copy() for g in gradients]
        states = {path: to_array(x).copy() for path, x in module.named_buffers() if is_inexact(x)}
        by_parameter = dict(zip(parameters, found, strict=False))
        by_input = dict(zip(moving, found[len(parameters) :], strict=False))
        return Run(arrays, by_parameter, by_input, states)

    def with_values(self, values: Arrays) -> Any:
        """The module, with other numbers in it."""
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for path, value in values.items():
                named[path].copy_(from_array(np.array(value)))
        return self.model

    def conventions(self, run: Callable[[Mode], object]) -> Iterator[tuple[str, Mode]]:
        """What porters confuse, such as another epsilon."""
        applying = Applying(confusions())
        run(applying)
        for number, convention in enumerate(confusions()):
            if number in applying.numbers:
                yield convention.text, ByConvention(convention)


def kind_of(layer: nn.Module) -> str:
    """A layer's class; of a class of the user's that is derived from one of torch.nn, that of torch.nn."""
    bases = takewhile(lambda cls: cls is not nn.Module, type(layer).__mro__)
    own = (cls for cls in bases if cls.__module__.startswith("torch.nn.modules"))
    return next(own, type(layer)).__name__


def watch(module: nn.Module, tape: Tape) -> None:
    """Have a tape see what each layer of a module receives and returns."""

    def before(path: str, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        tape.meet(path, kind_of(layer))
        return watched(tape, path, "input", (args, kwargs)) if tape.wants(path) else None

    def after(path: str, layer: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        return watched(tape, path, "output", result) if tape.wants(path) else None

    for path, layer in module.named_modules():
        if path:
            layer.register_forward_pre_hook(partial(before, path), with_kwargs=True)
            layer.register_forward_hook(partial(after, path), with_kwargs=True)


def arrays_of(result: Any) -> dict[str, Tensor]:
    """The tensors in what a model returned, by path; what else there is, is left out."""
    return {
        path + _pytree.keystr(keys): y
        for path, x in leaves(result, "output")
        for keys, y in _pytree.tree_flatten_with_path(x)[0]
        if isinstance(y, Tensor)
    }
