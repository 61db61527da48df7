"""Each check as a test of its own, for pytest."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Unpack

from p3.parity.case import Case, Options
from p3.parity.checker import check_names, make_case, run_check
from p3.parity.function import Function
from p3.parity.models.report import ModelReport
from p3.parity.trainings.case import ORDER
from p3.parity.trainings.report import TrainingReport


def parity_test(
    reference: Function,
    port: Function,
    inputs: object,
    *,
    only: Iterable[str] | None = None,
    **options: Unpack[Options],
) -> Callable[[str], None]:
    """
    Make a test function with the checks as its parameters; the arguments are those of `check`.

    A check that is refused or not applicable skips, with its reason.

    Examples
    --------
    >>> test_port = parity_test(torchp3.as_operator(f), jaxp3.as_operator(g), np.linspace(-3, 3, 101))
    """
    import pytest  # which only those who test need

    @cache
    def case() -> Case:
        return make_case(reference, port, inputs, **options)

    names = check_names(only, options.get("compiled", True))

    @pytest.mark.parametrize("check", names, ids=[name.replace(" ", "-") for name in names])
    def test(check: str) -> None:
        result = run_check(case(), check)
        if result.verdict in ("refused", "not applicable"):
            pytest.skip(f"{result.verdict}: {result.note}")
        assert result.is_right, "\n".join(map(str, result.findings))

    return test


def model_test(check: Callable[[], ModelReport], layers: Iterable[str]) -> Callable[[str], None]:
    """
    Make a test function with the layers of a model as its parameters, and a last one for what is of no layer.

    Parameters
    ----------
    check : makes the report, once
    layers : those of the reference that have parameters
    """
    import pytest  # which only those who test need

    report = cache(check)
    names = tuple(dict.fromkeys(layer for layer in layers if layer))

    @pytest.mark.parametrize("layer", [*names, "the rest"])
    def test(layer: str) -> None:
        wrong = [finding for finding in report().findings if finding.kind == "semantic"]
        own = [
            f
            for f in wrong
            if layer in [name for path in (f.path, *f.also) for name in (path, path.rpartition(".")[0])]
        ]
        rest = [f for f in wrong if f.path not in names and f.path.rpartition(".")[0] not in names]
        found = rest if layer == "the rest" else own
        assert not found, "\n".join(map(str, found))

    return test


def training_test(check: Callable[[], TrainingReport]) -> Callable[[str], None]:
    """
    Make a test function with the quantities of a training as its parameters.

    Parameters
    ----------
    check : makes the report, once
    """
    import pytest  # which only those who test need

    report = cache(check)

    @pytest.mark.parametrize("quantity", ORDER, ids=[name.replace(" ", "-") for name in ORDER])
    def test(quantity: str) -> None:
        wrong = [f for f in report().findings if f.kind == "semantic" and f.quantity == quantity]
        assert not wrong, "\n".join(map(str, wrong))

    return test
