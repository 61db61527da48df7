"""`check`: everything that is checked, in order."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter

from p3.errors import InputError
from p3.parity import derivatives, domain, faults, identities, modes
from p3.parity.case import DTYPES, Case, make_inputs
from p3.parity.operator import Operator
from p3.parity.recorded import Recorded, RefusalError
from p3.parity.report import ParityReport
from p3.parity.result import CheckResult

CHECKS: dict[str, Callable[[Case], CheckResult]] = {
    "value": derivatives.value,
    "vjp": derivatives.vjp,
    "jvp": derivatives.jvp,
    "vjp of vjp": derivatives.vjp_of_vjp,
    "jvp of vjp": derivatives.jvp_of_vjp,
    "adjoint": identities.adjoint,
    "linearity": identities.linearity,
    "transformed": modes.transformed,
    "batched": modes.batched,
    "repeatable": identities.repeatable,
    "inputs intact": identities.inputs_intact,
    "dtypes": domain.dtypes,
    "low precision": domain.low_precision,
    "shapes": domain.shapes,
    "special values": domain.special_values,
    "rule": modes.rule,
    "compiled": modes.compiled,
    "power": faults.power,
}

Progress = Callable[[str, int, int], None]


def check(
    reference: Operator,
    port: Operator,
    inputs: object,
    *,
    only: Iterable[str] | None = None,
    closed_form: Callable[..., object] | None = None,
    surrogate: bool = False,
    points: Iterable[float] = (),
    dtypes: Iterable[str] = DTYPES,
    compiled: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> ParityReport:
    """
    Say whether a port is right, how that is known, and whether the inputs could have shown a fault.

    Parameters
    ----------
    reference, port : of `torchp3.as_operator` and `jaxp3.as_operator`, in any order
    inputs : an array, or a tuple of one for each argument; floating ones are rounded to float32
    only : names of `CHECKS`; all where none is given
    closed_form : f in NumPy, for arrays of float64 or complex128, if there is one
    surrogate : the rule is on purpose not the derivative, and is held against the other side alone
    points : more values to check every argument at: kinks, branch points
    dtypes : in which to check what comes out
    compiled : whether to check compiled modes too, which takes seconds
    seed : of the random cotangents, tangents and directions
    progress : called as progress(name of the next check, checks done, checks in all)

    Raises
    ------
    InputError
        An operator cannot be called with the inputs, or there is no such check.

    Examples
    --------
    >>> report = check(torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), np.linspace(-3, 3, 101))
    >>> report.assert_ok()
    """
    names = tuple(only or CHECKS)
    for name in names:
        if name not in CHECKS:
            raise InputError(f"there is no check {name!r}; there are {', '.join(map(repr, CHECKS))}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    case = make_case(
        reference,
        port,
        inputs,
        closed_form=closed_form,
        surrogate=surrogate,
        points=tuple(points),
        dtypes=tuple(dtypes),
        compiled=compiled,
        seed=seed,
    )
    if not compiled and not only:
        names = tuple(name for name in names if name != "compiled")
    results: list[CheckResult] = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        results.append(run_check(case, name))
    return ParityReport(reference.name, reference.framework, port.name, port.framework, case, tuple(results))


def run_check(case: Case, name: str) -> CheckResult:
    """One check, timed."""
    begin = perf_counter()
    try:
        result = CHECKS[name](case)
    except RefusalError as refusal:
        result = CheckResult(name, "refused", str(refusal))
    return result._replace(name=name, seconds=perf_counter() - begin)


def make_case(reference: Operator, port: Operator, inputs: object, **options: object) -> Case:
    """
    The case, once both operators have been called with the inputs.

    Raises
    ------
    InputError
        One cannot be.
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    case = Case(Recorded(reference, "the reference"), Recorded(port, "the port"), make_inputs(given))
    case = replace(case, **options)  # type: ignore[arg-type]
    for _, operator in case.sides:
        try:
            operator.value(case.inputs)
        except RefusalError as refusal:
            shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in case.inputs)
            raise InputError(
                f"{operator.name} ({operator.framework}) cannot be called with inputs of {shapes}: {refusal}"
            ) from refusal
    if not case.arguments:
        raise InputError("no input is floating or complex, so that there is no derivative to check; give one that is")
    if not case.cotangents:
        raise InputError(
            f"{reference.name} returns no floating or complex array, so that there is no derivative to check"
        )
    return case
