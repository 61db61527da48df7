"""Operators that people port today: right ports pass, and wrong ones fail, with a short report that says why."""

import re

import pytest

import jaxp3
import torchp3
from p3 import parity
from tests.support.ported import FALSE_ALARMS, FAULTS, RIGHT

pytestmark = pytest.mark.filterwarnings("ignore")
MANY = ["value", "vjp", "vjp of vjp", "special values", "integers"]


def check(right, port, only, **options):
    sides = (
        make(f, arguments=right.arguments)
        for make, f in ((torchp3.as_operator, right.torch), (jaxp3.as_operator, port))
    )
    return parity.check(*sides, right.inputs, only=only, compiled=False, **right.options, **options)


EACH_EIGHTH = list(RIGHT)[::8]  # of which all checks are run


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_passes(name):
    right = RIGHT[name]
    check(right, right.jax, None if name in EACH_EIGHTH else MANY).assert_ok()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_port_fails_and_the_report_says_why(name):
    fault = FAULTS[name]
    report = check((RIGHT | FALSE_ALARMS)[fault.right], fault.jax, [*MANY, "shapes"], **fault.options)
    assert not report.ok
    lines = str(report).splitlines()
    assert len(lines) <= 40
    causes = [line for line in lines[:3] if line.startswith("First cause: ")]
    assert causes
    assert re.search(fault.says, causes[0].removeprefix("First cause: ")), causes[0]
