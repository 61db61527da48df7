"""`p3.check` and `p3.parity_test`: functions of the frameworks themselves, by the frameworks' names."""

from collections.abc import Callable
from typing import Any

from p3.backends import BACKENDS, load
from p3.errors import InputError
from p3.parity import checker, testing
from p3.parity.case import Options
from p3.parity.function import Function
from p3.parity.report import ParityReport


def check(*, inputs: object, **sides_and_options: Any) -> ParityReport:
    """
    Say whether a port is right, how that is known, and whether the inputs could have shown a fault.

    Parameters
    ----------
    torch, jax : the two functions, of arrays of each framework; the one that is named first is the reference
    inputs : an array, a tuple of arguments by position, or a dict of arguments by name; an argument is an array or a
        nested dict, list, tuple, named tuple or dataclass of them
    only, progress : as `p3.parity.check` has them
    sides_and_options : closed_form, surrogate, linear, points, awkward, keys, edges, dtypes, compiled and seed, as
        `p3.parity.check` has them

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
    reference, port, options = two_sides(sides_and_options)
    return checker.check(reference, port, inputs, **options)


def parity_test(*, inputs: object, **sides_and_options: Any) -> Callable[[str], None]:
    """
    Make a test function with the checks as its parameters; the arguments are those of `check`.

    Examples
    --------
    >>> test_my_port = parity_test(torch=f, jax=g, inputs=np.linspace(-3, 3, 101))
    """
    reference, port, options = two_sides(sides_and_options)
    return testing.parity_test(reference, port, inputs, **options)


def two_sides(given: dict[str, Any]) -> tuple[Function, Function, dict[str, Any]]:
    """The reference, the port, and everything else that was given."""
    sides = {name: given[name] for name in given if name in BACKENDS}
    if len(sides) != 2:
        known = " and ".join(f"{name}=" for name in BACKENDS)
        raise InputError(f"{known} are the two sides, and {len(sides)} of them given; give a function for each")
    options = {name: value for name, value in given.items() if name not in BACKENDS}
    known_options = (*Options.__annotations__, "only", "progress")
    for name in options:
        if name not in known_options:
            raise InputError(f"there is no option {name!r}; there are {', '.join(known_options)}")
    reference, port = (
        f if isinstance(f, Function) else load("torch" if name == "torch" else "jax").as_operator(f)
        for name, f in sides.items()
    )
    return reference, port, options
