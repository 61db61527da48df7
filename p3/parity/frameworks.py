"""`p3.check`, `p3.check_model`, `p3.check_training`: functions, models and trainings, by their frameworks' names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from p3.backends import BACKENDS, load
from p3.errors import InputError, UncallableError
from p3.parity import checker, testing
from p3.parity.case import Case, Options, make_inputs
from p3.parity.function import Function
from p3.parity.models.checker import check_model as check_models
from p3.parity.models.links import Match
from p3.parity.models.match import match as match_of
from p3.parity.models.module import Module
from p3.parity.models.report import ModelReport
from p3.parity.process import changes
from p3.parity.report import ParityReport
from p3.parity.trainings.checker import check_training as check_trainings
from p3.parity.trainings.report import TrainingReport
from p3.parity.trainings.training import Training


def shown(*required: str, **defaults: object) -> Signature:
    """What `help` shows: the sides, and every option with its default."""
    of_case = {field.name: field for field in dataclasses.fields(Case)}
    for name in Options.__annotations__:
        field = of_case[name]
        made = field.default_factory
        defaults[name] = field.default if made is dataclasses.MISSING else made()
    kind = Parameter.KEYWORD_ONLY
    parameters = [Parameter(name, kind) for name in required]
    return Signature([*parameters, *(Parameter(name, kind, default=value) for name, value in defaults.items())])


def check(**sides_and_options: Any) -> ParityReport:
    """
    Say whether a port is right, how that is known, and whether the inputs could have shown a fault.

    Parameters
    ----------
    torch, jax : the two functions, of arrays of each framework; the one that is named first is the reference
    inputs : an array, a tuple of arguments by position, or a dict of arguments by name; an argument is an array or a
        nested dict, list, tuple, named tuple or dataclass of them; floating ones are rounded to float32
    only : the name of a check, or several; all where it is None
    progress : called as progress(name of the next check, checks done, checks in all)
    closed_form : f in NumPy, for arrays of float64 or complex128, if there is one
    surrogate : whether the rule is intentionally not the derivative; it is compared with the other side's alone
    linear : whether the rule is linear in its cotangent; False for one that clips it, which is a surrogate as well
    points : more values to check every argument at: kinks, branch points
    awkward : more inputs to check at, by what is awkward about them, as in {"ties": inputs}
    project : a NumPy function that projects arguments onto the domain of the functions, such as the symmetric matrices.
        It is called with the same arguments as they are, and p3 applies it to every input that it generates
    keys : the positions or names of arguments that are random keys or states; their whole numbers are not varied, and
        no derivative is taken by their floating ones
    states : the positions or names of outputs that are states, such as running statistics; they are compared, and have
        no derivative
    edges : "report", or "fail" where differences at infinities, NaN, huge and subnormal numbers count as well
    dtypes : in which to check what comes out
    compiled : whether to check compiled modes too, which takes seconds
    timeout : the seconds that each call of a function may take; None for as long as it takes
    seed : of the random cotangents, tangents and directions

    Returns
    -------
    ParityReport
        What every check came to; `report.ok`, `report.differences` and `report.first` are for programs.

    Raises
    ------
    InputError
        There are not two sides, a function cannot be called with the inputs, or there is no such option.

    Examples
    --------
    >>> check(torch=torch.sin, jax=jnp.sin, inputs=np.linspace(-3, 3, 101)).ok
    True
    """
    reference, port, inputs, options = two_sides(sides_and_options)
    try:
        return checker.check(reference, port, inputs, **options)
    except UncallableError as error:
        names = [name for name in sides_and_options if name in BACKENDS]
        index = ("reference", "port").index(error.side)
        if takes_other_arrays(sides_and_options[names[index]], names[index], inputs):
            raise InputError(
                f"{error}; it takes arrays of {names[1 - index]}: are torch= and jax= exchanged?"
            ) from error
        raise


check.__signature__ = shown("torch", "jax", "inputs", only=None, progress=None)  # type: ignore[attr-defined]


def check_model(
    *,
    inputs: object = None,
    match: Mapping[str, Any] | Match | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **sides: Any,
) -> ModelReport:
    """
    Say whether a model is a right port of another one, and name the first layer that differs, and why.

    Parameters of both are matched, and those of the reference are put into a copy of the port. Then each layer of the
    port runs on what the reference's layer received, forward and backward, in float64 and in float32, so that each
    cause is named once; and both models run from end to end. Neither model is changed.

    Parameters
    ----------
    torch, jax : the two models; the one that is named first is the reference. torch is a `torch.nn.Module`; jax is a
        `flax.nnx.Module`, an `equinox.Module`, an equinox module and its state as a pair, (linen module, variables) or
        (linen module, variables, keywords), or (function, parameters) called as function(parameters, *inputs)
    inputs : an array, a tuple of arguments by position, or a dict of arguments by name, in the reference's layout
    match : corrections of the match of parameters, as {"fc.weight": "dense.kernel"} or {"fc.weight": ("dense.kernel",
        "o i -> i o")}, from PyTorch's path to the JAX path; or the `match` of an earlier report
    seed : of the random cotangents of the outputs
    progress : called as progress(what runs next, stages done, stages in all)

    Returns
    -------
    ModelReport
        The causes, the layers and the parameters; `report.ok`, `report.differences` and `report.first` are for
        programs.

    Raises
    ------
    InputError
        A side is no model, cannot be called with the inputs, or has no parameter that the match names.

    Examples
    --------
    >>> check_model(torch=torch.nn.Linear(2, 3), jax=nnx.Linear(2, 3, rngs=nnx.Rngs(0)), inputs=np.ones((4, 2))).ok
    True
    """
    reference, port = two_models(sides)
    if inputs is None:
        raise InputError("there are no inputs; give inputs=, an array, or a tuple or a dict of arguments")
    return check_models(reference, port, inputs, match=match, seed=seed, progress=progress)


def check_training(
    *,
    batches: Any = None,
    steps: int | None = None,
    match: Mapping[str, Any] | Match | None = None,
    accept: Sequence[Any] = (),
    progress: Callable[[str, int, int], None] | None = None,
    **sides: Any,
) -> TrainingReport:
    """
    Say whether two trainings do the same, and name the first step and quantity that differs, and why.

    Before each step, the reference's parameters, running statistics and optimizer state are written into the port, and
    both take one step on the same batch, in float64 and in float32. So nothing accumulates, and each cause is named
    once. The port also runs by itself from the same start, which shows how far rounding drives the two apart. The
    user's models and optimizers are copied and never changed.

    Parameters
    ----------
    torch, jax : a `torchp3.Training` and a `jaxp3.Training`; the one that is named first is the reference
    batches : an iterable of batches, one for each step, each an array or a nested tuple, list or dict of them; or one
        such iterable for each side, as {"torch": ..., "jax": ...}, whose batches are compared as well
    steps : how many steps to take; as many as there are batches, and at most 100, where it is None
    match : corrections of the match of parameters, as for `check_model`
    accept : differences that are known and accepted: names of mistakes that p3 knows, as "clip_grad_norm_ 1e-6", or
        (quantity, bound) or (quantity, path, bound), with a bound that is a fraction of the array's size
    progress : called as progress(what runs next, steps done, steps in all)

    Returns
    -------
    TrainingReport
        The causes, and how far apart the sides are in each quantity; `report.ok`, `report.differences` and
        `report.first` are for programs.

    Raises
    ------
    InputError
        A side is no training, its loss is no scalar, or the two do not have the same parameters.

    Examples
    --------
    >>> check_training(torch=torchp3.Training(...), jax=jaxp3.Training(...), batches=batches, steps=300).ok
    True
    """
    for name in sides:
        if name not in BACKENDS:
            raise InputError(
                f"there is no option {name!r}; there are torch, jax, batches, steps, match, accept, progress"
            )
    if len(sides) != 2:
        raise InputError(f"torch= and jax= are the two trainings, and {len(sides)} of them given; give both")
    for name, side in sides.items():
        if not isinstance(side, Training) or side.is_torch != (name == "torch"):
            package = "torchp3" if name == "torch" else "jaxp3"
            raise InputError(f"{name}= is {type(side).__name__}; give a {package}.Training")
    if batches is None:
        raise InputError("there are no batches; give batches=, an iterable of batches, one for each step")
    reference, port = sides.values()
    return check_trainings(reference, port, batches, steps=steps, match=match, accept=accept, progress=progress)


def two_models(sides: Mapping[str, Any]) -> tuple[Module, Module]:
    """
    The reference and the port.

    Raises
    ------
    InputError
        There are not two sides, or one is no model.
    """
    for name in sides:
        if name not in BACKENDS:
            raise InputError(f"there is no option {name!r}; there are torch, jax, inputs, match, seed, progress")
    if len(sides) != 2:
        raise InputError(f"torch= and jax= are the two models, and {len(sides)} of them given; give both")
    reference, port = (load("torch" if name == "torch" else "jax").as_module(model) for name, model in sides.items())
    return reference, port


def convert(source: Any, target: Any, match: Mapping[str, Any] | Match | None = None) -> Any:
    """
    Write the parameters of a model into its port, or back.

    Parameters
    ----------
    source, target : a model in PyTorch and one in JAX, in either order, as for `check_model`
    match : as for `check_model`; without one it is found by names, classes of layers and shapes

    Returns
    -------
    Any
        The target with the source's numbers, in its own dtypes. A `torch.nn.Module` and a `flax.nnx.Module` are changed
        in place; of the others a new one is returned, and the target is as it was.

    Raises
    ------
    InputError
        One is no model, both are of one framework, or the match names what is not there.

    Examples
    --------
    >>> convert(torch.nn.Linear(2, 3), nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    """
    first, second = as_module(source), as_module(target)
    if first.is_torch == second.is_torch:
        raise InputError(f"both models are of {first.framework}; give one of PyTorch and one of JAX")
    ours, theirs = first.parameters({}), second.parameters({})
    if match is not None and not isinstance(match, Mapping | Match):
        raise InputError(f"match= is {type(match).__name__}; give a dict, or the match of a report")
    found = (
        match if isinstance(match, Match) else match_of(*((ours, theirs) if first.is_torch else (theirs, ours)), match)
    )
    held, own = ({parameter.path: parameter.array for parameter in side} for side in (ours, theirs))
    torch, jax = (held, own) if first.is_torch else (own, held)
    for link in found.links:
        for path, arrays in ((link.jax.path, jax), *((part.path, torch) for part in link.torch)):
            if path not in arrays:
                raise InputError(f"the match has {path}, which the model has not; give the match of these two models")
    if not found.links:
        raise InputError(
            "no parameter of the two models is matched; give match=, from PyTorch's paths to the JAX paths"
        )
    return second.with_values(found.to_jax(held, own) if first.is_torch else found.to_torch(held, own))


def as_module(model: Any) -> Module:
    """
    The model, as its framework's package makes it.

    Raises
    ------
    InputError
        It is none.
    """
    is_torch = any(cls.__module__.startswith("torch.nn") for cls in type(model).__mro__)
    return load("torch" if is_torch else "jax").as_module(model)


def takes_other_arrays(f: Any, framework: str, inputs: object) -> bool:
    """Whether a function that was given as one framework's can be called with the arrays of the other."""
    arrays, structure = make_inputs(inputs)
    both: dict[str, Function] = {name: load(name).as_operator(f) for name in ("torch", "jax")}
    other = next(operator for name, operator in both.items() if name != framework)
    results: list[object] = []

    def call() -> None:
        results.append(other.of(structure).value(arrays))

    # What it changes of either framework is put back.
    changes(both["torch"], lambda: changes(both["jax"], call))
    return bool(results)


def parity_test(**sides_and_options: Any) -> Callable[[str], None]:
    """
    Make a test function with the checks as its parameters; the arguments are those of `check`.

    Of models it is one with the layers as its parameters, and the arguments are those of `check_model`. Of trainings
    it is one with the quantities as its parameters, and the arguments are those of `check_training`.

    Examples
    --------
    >>> test_my_port = parity_test(torch=f, jax=g, inputs=np.linspace(-3, 3, 101))
    """
    torch = sides_and_options.get("torch")
    if isinstance(torch, Training):
        return testing.training_test(lambda: check_training(**sides_and_options))
    if any(cls.__module__.startswith("torch.nn") for cls in type(torch).__mro__):
        sides = {name: x for name, x in sides_and_options.items() if name in BACKENDS}
        options = {name: x for name, x in sides_and_options.items() if name not in BACKENDS}
        layers = [parameter.layer for parameter in as_module(torch).parameters({})]
        return testing.model_test(lambda: check_model(**sides, **options), layers)
    reference, port, inputs, options = two_sides(sides_and_options)
    return testing.parity_test(reference, port, inputs, **options)


parity_test.__signature__ = shown("torch", "jax", "inputs", only=None)  # type: ignore[attr-defined]


def two_sides(given: dict[str, Any]) -> tuple[Function, Function, object, dict[str, Any]]:
    """
    The reference, the port, the inputs, and the options that were given.

    Raises
    ------
    InputError
        There are not two sides, there are no inputs, or there is no such option.
    """
    sides = {name: given[name] for name in given if name in BACKENDS}
    if len(sides) != 2:
        known = " and ".join(f"{name}=" for name in BACKENDS)
        raise InputError(f"{known} are the two sides, and {len(sides)} of them given; give a function for each")
    if "inputs" not in given:
        raise InputError("there are no inputs; give inputs=, an array, or a tuple or a dict of arguments")
    options = {name: value for name, value in given.items() if name not in (*BACKENDS, "inputs")}
    known_options = (*Options.__annotations__, "only", "progress")
    for name in options:
        if name not in known_options:
            raise InputError(f"there is no option {name!r}; there are {', '.join(known_options)}")
    reference, port = (
        f if isinstance(f, Function) else load("torch" if name == "torch" else "jax").as_operator(f)
        for name, f in sides.items()
    )
    return reference, port, given["inputs"], options
