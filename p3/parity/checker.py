"""`check`: everything that is checked, in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar, Unpack

import numpy as np

from p3.errors import InputError, UncallableError
from p3.parity.case import DTYPES, Case, Options, greatest, make_inputs, rounded
from p3.parity.checks import derivatives, domain, faults, identities, integers, modes, special
from p3.parity.function import Arrays, Function, is_inexact, wide
from p3.parity.limit import MEMORY, Limit, TimeLimitError, limited
from p3.parity.place import Place
from p3.parity.process import changes, kept, undisturbed
from p3.parity.recorded import Recorded, RefusalError
from p3.parity.report import ParityReport
from p3.parity.result import CheckResult, Finding, judged, refused
from p3.parity.tree import Structure, is_of, take_apart
from p3.tolerance import NEARLY

CHECKS: dict[str, Callable[[Case], CheckResult]] = {
    "value": derivatives.value,
    "vjp": derivatives.vjp,
    "jvp": derivatives.jvp,
    "vjp of vjp": derivatives.vjp_of_vjp,
    "jvp of vjp": derivatives.jvp_of_vjp,
    "vjp of jvp": derivatives.vjp_of_jvp,
    "jvp of jvp": derivatives.jvp_of_jvp,
    "adjoint": identities.adjoint,
    "linearity": identities.linearity,
    "transformed": modes.transformed,
    "batched": modes.batched,
    "repeatable": identities.repeatable,
    "inputs intact": identities.inputs_intact,
    "process intact": identities.process_intact,
    "dtypes": domain.dtypes,
    "low precision": domain.low_precision,
    "shapes": domain.shapes,
    "special values": special.special_values,
    "integers": integers.integers,
    "rule": modes.rule,
    "compiled": modes.compiled,
    "power": faults.power,
}

# Of a derivative, which a function has none of whose results are whole numbers or truth values.
SECOND = ("vjp of vjp", "jvp of vjp", "vjp of jvp", "jvp of jvp")
OF_DERIVATIVES = ("vjp", "jvp", *SECOND, "adjoint", "linearity", "rule", "power")
OF_FLOATING = ("dtypes", "low precision")

# Arrays of two calls cannot be compared then; what a function raises itself is a refusal.
FICKLE = "a function does not return the same number of arrays, of the same shapes, in every call with such inputs"

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]


def check(
    reference: Function,
    port: Function,
    inputs: object,
    *,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> ParityReport:
    """
    Say whether a port is right, how that is known, and whether the inputs could have shown a fault.

    Parameters
    ----------
    reference, port : of `torchp3.as_operator` and `jaxp3.as_operator`, in any order
    inputs : an array, a tuple of arguments by position, or a dict of arguments by name; an argument is an array or a
        nested dict, list, tuple, named tuple or dataclass of them; floating ones are rounded to float32
    only : a name of `CHECKS`, or several; all where none is given
    progress : called as progress(name of the next check, checks done, checks in all)
    options : closed_form, surrogate, linear, points, awkward, project, keys, states, edges, dtypes, compiled, timeout
        and seed, as `Options` has them

    Raises
    ------
    InputError
        An operator cannot be called with the inputs, or there is no such check.

    Examples
    --------
    >>> report = check(torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), np.linspace(-3, 3, 101))
    >>> report.assert_ok()
    """
    case = make_case(reference, port, inputs, **options)
    names = check_names(only, case.compiled)
    results: list[CheckResult] = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        results.append(run_check(case, name))
    return ParityReport(reference.name, reference.framework, port.name, port.framework, case, tuple(results))


def check_names(only: Iterable[str] | None, compiled: bool) -> tuple[str, ...]:
    """
    The checks to make, in order.

    Raises
    ------
    InputError
        There is no check of a name, or what is compiled is asked for and left out.
    """
    every = tuple(name for name in CHECKS if compiled or name != "compiled")
    names = (only,) if isinstance(only, str) else tuple(only or ()) or every
    for name in names:
        if name not in CHECKS:
            raise InputError(f"there is no check {name!r}; there are {', '.join(map(repr, CHECKS))}")
    if "compiled" in names and not compiled:
        raise InputError("the check 'compiled' is asked for and left out at once; do one of the two")
    return names


def run_check(case: Case, name: str) -> CheckResult:
    """
    One check, timed; refused where a side raises, and not applicable where the sides' outputs cannot be compared.

    It fails where a call takes longer than it may.
    """
    begin = perf_counter()
    try:
        result = in_time(case.timeout, lambda: checked(case, name))
    except TimeLimitError as error:
        text = f"it takes longer than {case.timeout:g} s"
        finding = Finding(error.place or Place("", ""), "its time limit", text)
        result = judged(name, [finding], "")
    return result._replace(name=name, seconds=perf_counter() - begin)


def in_time(timeout: float | None, work: Callable[[], Result]) -> Result:
    """The result of some work, in the memory that the machine has; each of its calls may take some seconds."""
    with MEMORY.limited():
        return work() if timeout is None else Limit(timeout).run(work)


def checked(case: Case, name: str) -> CheckResult:
    """What a check comes to."""
    with ordered(case):
        try:
            if name != "value" and not alike(case):
                return CheckResult(name, "not applicable", "the sides' outputs differ in number, shape or kind")
            if name in (*OF_DERIVATIVES, *OF_FLOATING) and not case.cotangents:
                return CheckResult(name, "not applicable", "no output is floating or complex")
            return CHECKS[name](case)
        except RefusalError as refusal:
            return refused(name, [refusal.refusal])
        except InputError:
            raise
        except (ValueError, IndexError, TypeError) as error:
            return CheckResult(name, "failed", f"{FICKLE} ({type(error).__name__}: {error})")


@contextmanager
def ordered(case: Case) -> Iterator[None]:
    """While it lasts, the caller's modes have no part; what the functions change is put back."""
    with undisturbed(operator for _, operator in case.sides), ExitStack() as stack:
        for side, operator in case.sides:
            names = {name for (whose, _), found in case.changes.items() if whose == side for name in found}
            stack.enter_context(kept(operator, names))
        yield


def look_for_changes(case: Case) -> None:
    """Fill the case's `changes`, by calls of each side's function as it is; what they change is put back."""
    for side, operator in case.sides:
        with limited(Place(side, "value")):
            case.changes[side, "value"] = changes(operator, partial(operator.function.value, case.inputs))
    with suppress(RefusalError):  # which is told by who calls it next
        with ordered(case):
            cotangents = case.cotangents
        for side, operator in case.sides if cotangents else ():
            with limited(Place(side, "vjp")):
                case.changes[side, "vjp"] = changes(operator, partial(operator.function.vjp, case.inputs, cotangents))


def alike(case: Case) -> bool:
    """Whether the sides' outputs are as many, of the same shapes, and floating or complex alike."""
    sides = [[(y.shape, derivatives.kind(y)) for y in o.value(case.inputs)] for _, o in case.sides]
    return sides[0] == sides[1]


def make_case(reference: Function, port: Function, inputs: object, **options: Unpack[Options]) -> Case:
    """
    The case, once both operators have been called with the inputs.

    Raises
    ------
    InputError
        One cannot be, or an option is none.
    """
    for operator in (reference, port):
        if not isinstance(operator, Function):
            raise InputError(
                f"{getattr(operator, '__name__', operator)!r} is {type(operator).__name__} and no operator; "
                "make one of it with torchp3.as_operator or jaxp3.as_operator"
            )
    arrays, structure = make_inputs(inputs)
    checked = checked_options(options, structure)
    held = (checked.get("keys", ()), checked.get("states", ()))
    case = Case(
        Recorded(reference.of(structure).held(arrays, *held), "reference"),
        Recorded(port.of(structure).held(arrays, *held), "port"),
        arrays,
        structure,
        **checked,
    )
    try:
        if case.project is not None:
            case = replace(case, inputs=in_time(case.timeout, partial(projected, case)))
        in_time(case.timeout, partial(prepare, case))
    except TimeLimitError as error:
        raise InputError(f"{error.place}: it takes longer than {case.timeout:g} s at the inputs") from None
    return case


def projected(case: Case) -> Arrays:
    """
    The inputs in the domain.

    Raises
    ------
    InputError
        What is in the domain is projected to something else.
    """
    inputs = case.within(case.inputs)
    for path, x, again in zip(case.structure.paths, inputs, case.within(inputs), strict=True):
        if is_inexact(x) and not np.allclose(x, again, rtol=0, atol=NEARLY.value * greatest(np.abs(x)), equal_nan=True):
            raise InputError(
                f"project changes {path} again after it is projected; give a function that leaves unchanged what is in "
                "the domain"
            )
    return inputs


def prepare(case: Case) -> None:
    """Look for what the functions change, and whether they and the options fit the inputs."""
    with undisturbed(operator for _, operator in case.sides):
        look_for_changes(case)
    with ordered(case):
        examine(case)


def examine(case: Case) -> None:
    """
    Call both sides, and compare what the user says of them.

    Raises
    ------
    UncallableError
        One cannot be called.
    InputError
        An option does not fit, or there is nothing to check.
    """
    for side, operator in case.sides:
        try:
            operator.value(case.inputs)
            operator.output_paths(case.inputs)
        except RefusalError as refusal:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in case.inputs)
            raise UncallableError(
                f"{operator.name} ({operator.framework}) cannot be called with inputs of {shapes}: {refusal}", side
            ) from refusal
    for _, operator in case.sides:
        if not any(y.size for y in operator.value(case.inputs)):
            raise InputError(
                f"{operator.name} ({operator.framework}) gives no number at the inputs, so that there is nothing to "
                "check; return an array that has elements"
            )
    if not any(np.isfinite(wide(y)).any() for y in case.values):
        raise InputError(
            f"{case.reference.name} ({case.reference.framework}) gives no finite number at the inputs, so that there "
            "is nothing to check; give inputs where it is defined"
        )
    if not case.arguments:
        raise InputError("no input is floating or complex, so that there is no derivative to check; give one that is")
    for state in case.reference.states:
        if not any(is_of(path, state) for path in case.output_paths):
            raise InputError(f"there is no output {state!r}; there are {', '.join(case.output_paths)}")
    paths = case.structure.paths
    for _, operator in case.sides:
        for i in operator.arguments(case.inputs):
            if not 0 <= i < len(paths):
                raise InputError(f"there is no argument {i} to differentiate by; there are {', '.join(paths)}")
            if not is_inexact(case.inputs[i]):
                dtype = case.inputs[i].dtype
                raise InputError(f"{paths[i]} is {dtype}, and cannot be differentiated by; choose floating arguments")
    by_reference, by_port = ([paths[i] for i in operator.arguments(case.inputs)] for _, operator in case.sides)
    if by_reference != by_port:
        raise InputError(
            f"the reference is differentiated by {', '.join(by_reference)}, and the port by {', '.join(by_port)}; "
            "give arguments= of both the same"
        )
    for _, operator in case.sides:
        operator.hurry(case.inputs, case.cotangents)
    for name, inputs in case.awkward.items():
        if [x.dtype.kind for x in inputs] != [x.dtype.kind for x in case.inputs]:
            raise InputError(
                f"the awkward inputs {name!r} are {', '.join(x.dtype.name for x in inputs)}, and the others "
                f"{', '.join(x.dtype.name for x in case.inputs)}; give as many, of the same kinds"
            )
    if case.closed_form is not None:
        check_closed_form(case)


def checked_options(options: Options, structure: Structure) -> dict[str, Any]:
    """
    The options, as a `Case` has them.

    Raises
    ------
    InputError
        One is none.
    """
    checked: dict[str, Any] = dict(options)
    if "points" in options:
        try:
            checked["points"] = tuple(float(point) for point in options["points"])
        except (TypeError, ValueError):
            raise InputError(
                f"points {options['points']!r} are no numbers; give some, as in points=(0.0, 1.0)"
            ) from None
    if "awkward" in options:
        if not isinstance(options["awkward"], Mapping) or not all(isinstance(name, str) for name in options["awkward"]):
            raise InputError(
                'awkward inputs have names; give a dict of them, as in awkward={"ties": np.array([1.0, 1.0])}'
            )
        checked["awkward"] = {name: take_apart(inputs, rounded)[0] for name, inputs in options["awkward"].items()}
    if "dtypes" in options:
        dtypes = options["dtypes"]
        checked["dtypes"] = (dtypes,) if isinstance(dtypes, str) else tuple(dtypes)
        for dtype in checked["dtypes"] or ("none at all",):
            if dtype not in DTYPES:
                raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if "keys" in options:
        keys = options["keys"]
        chosen = (keys,) if isinstance(keys, int | str) else tuple(keys)
        structure.check(chosen)
        checked["keys"] = tuple(i for i, top in enumerate(structure.tops) if top in chosen)
    if "states" in options:
        states = options["states"]
        checked["states"] = (states,) if isinstance(states, int | str) else tuple(states)
    if options.get("edges", "report") not in ("report", "fail"):
        raise InputError(f"edges={options['edges']!r} is neither 'report' nor 'fail'")
    timeout = options.get("timeout")
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise InputError(f"timeout {timeout!r} is no number of seconds above 0")
    seed = options.get("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed {seed!r} is not a whole number from 0")
    return checked


def check_closed_form(case: Case) -> None:
    """
    The closed form can be called, and has the reference's shapes.

    Raises
    ------
    InputError
        It cannot, or has others.
    """
    values = case.closed(case.inputs)
    for y in values:
        if y.dtype.kind not in "fciub":
            raise InputError(f"closed_form gives {y.dtype}, and must give an array of numbers, or a tuple of them")
    if not any(np.isfinite(wide(y)).any() for y in values):
        raise InputError("closed_form gives no finite number at the inputs; give one that is defined there")
    shapes = [y.shape for y in values]
    expected = [y.shape for y in case.values]
    if shapes != expected:
        raise InputError(f"closed_form gives arrays of shapes {shapes}, and the reference of shapes {expected}")
