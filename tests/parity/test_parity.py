"""The checker raises no false alarm, catches every faulty port by the check that should, and says how it knows."""

import inspect
import json
import os
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import jaxp3.function
import torchp3.function
from p3 import InputError, parity
from p3.parity.checker import make_case
from p3.parity.checks.faults import FAULTS, FaultyPort, is_plantable
from p3.parity.function import wide
from p3.parity.mismatch import Pair, climb, explain, in_epsilons
from p3.parity.place import Place
from p3.parity.result import judged
from p3.parity.truth import true_vjp
from tests.support.faulty_ports import FAULTY, jax_rule
from tests.support.right_pairs import DIFFERENCES, LINE, PAIRS
from tests.support.sine import Sine, Term

# What a report says that a check did, where the check itself has no figures for it.
UNCOMPILED = [name for name in parity.CHECKS if name != "compiled"]


def check(pair, **options):
    return parity.check(
        torchp3.as_operator(pair.torch), jaxp3.as_operator(pair.jax), pair.inputs, **{**pair.options, **options}
    )


AT_ISSUE = ("value", "vjp", "shapes", "special values")  # where frameworks round, flush and end differently


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_a_right_port_raises_no_alarm_where_frameworks_differ(name):
    check(PAIRS[name], only=AT_ISSUE).assert_ok()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_a_right_port_raises_no_alarm(name):
    report = check(PAIRS[name], compiled=False)
    report.assert_ok()
    assert [result.name for result in report.checks] == UNCOMPILED
    assert report["power"].note.startswith("100 %") or report["power"].verdict == "not applicable"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (f.check == "compiled")) for name, f in FAULTY.items()]
)
def test_a_faulty_port_is_caught_by_the_check_that_should(name):
    faulty = FAULTY[name]
    report = parity.check(faulty.reference, faulty.port, faulty.inputs, only=[faulty.check], **faulty.options)
    (result,) = report.checks
    assert result.verdict == "failed", result
    port = [finding for finding in result.findings if finding.place.side == "port"]
    assert any(re.search(faulty.says, str(finding)) for finding in port), port
    with pytest.raises(AssertionError, match="not shown to be right"):
        report.assert_ok()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("adapter", "mode", "name"),
    [
        (jaxp3.function, "shard_map", "zeros that do not vary with the device"),
        (torchp3.function, "DistributedDataParallel", "in PyTorch: a backward within the backward"),
        (torchp3.function, "DistributedDataParallel", "in PyTorch: a gradient shared by equal inputs"),
        (torchp3.function, "DistributedDataParallel", "in PyTorch: a residual shared by equal inputs"),
    ],
)
def test_what_shows_in_parallel_shows_nowhere_else(adapter, mode, name, monkeypatch):
    faulty = FAULTY[name]
    assert not parity.check(faulty.reference, faulty.port, faulty.inputs, only=["transformed"]).ok
    transformed = adapter.ArrayFunction.transformed
    monkeypatch.setattr(
        adapter.ArrayFunction,
        "transformed",
        lambda self: {name: other for name, other in transformed(self).items() if name != mode},
    )
    parity.check(faulty.reference, faulty.port, faulty.inputs, compiled=False).assert_ok()


def test_every_check_catches_something():
    in_tests_of_their_own = {"rule", "power", "integers"}
    assert {faulty.check for faulty in FAULTY.values()} | in_tests_of_their_own == set(parity.CHECKS)


def test_there_are_as_many_of_both_as_should_be():
    assert len(PAIRS) >= 30
    assert len(FAULTY) >= 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFERENCES)
def test_where_the_libraries_themselves_differ_it_says_so(name):
    pair, failing, says = DIFFERENCES[name]
    report = check(pair, only=["value", "vjp", "vjp of vjp", "special values"], edges="fail")
    assert failing in [result.name for result in report.failed]
    assert re.search(says, " ".join(map(str, report[failing].findings)))
    assert report["value"].verdict == report["vjp"].verdict == "passed"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_tutorials_pair_passes_everything_with_full_power():
    report = check(PAIRS["p3"])
    report.assert_ok()
    assert {result.name: result.verdict for result in report.checks if result.verdict != "passed"} == {
        forward: "refused"
        for forward in ("jvp", "vjp of jvp", "jvp of jvp")  # as a custom_vjp must
    } | {"integers": "not applicable"}
    assert "use jaxp3.legendre_p3_custom_jvp" in report["jvp"].note
    assert report["power"].note.startswith("100 %")
    assert "torch.compile of torch.func" in report["rule"].note


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_rule_that_a_framework_drops_is_named_with_the_mode():
    # The rule is not the derivative, so that dropping it changes the gradient (pytorch issue 193279).
    pair = PAIRS["straight-through rounding"]
    mode = "torch.compile of torch.func"
    report = check(pair, only=["rule"])
    assert report["rule"].verdict == "passed"  # since the port is in JAX
    assert f"the reference's rule does not run in {mode}, and its derivative is another there" in report["rule"].note
    sides = jaxp3.as_operator(pair.jax), torchp3.as_operator(pair.torch)
    report = parity.check(*sides, pair.inputs, only=["rule"], **pair.options)
    assert report["rule"].verdict == "failed"
    (finding,) = report["rule"].findings
    assert finding.place == Place("port", "vjp", mode=mode)
    assert finding.explanation == "it is not by the hand-written rule, and is another without it"


@pytest.mark.slow
def test_a_rule_that_is_dropped_and_not_missed_is_named_too():
    report = check(PAIRS["p3, custom_jvp"], only=["rule"])
    assert report["rule"].verdict == "passed"
    assert "jvp: dropped by torch.compile of torch.func, which gives the same without it" in report["rule"].note
    assert "vjp: ran in eager, one output and argument at a time, shard_map, vmap, jax.jit" in report["rule"].note


def test_the_rules_of_the_frameworks_own_functions_are_not_hand_written():
    for f in (jnp.logaddexp, lambda x, y: jax.nn.relu(x) * y):
        operator = jaxp3.as_operator(f)
        assert operator.rules((LINE, LINE)) == ()
        (plain, _), (scaled, _) = (o.vjp((LINE, LINE), (LINE,)) for o in (operator, operator.scaled(4.0)))
        assert np.array_equal(plain, scaled)
    assert jaxp3.as_operator(jaxp3.legendre_p3).rules((LINE,)) == ("legendre_p3",)


# --- rounding or semantic


def test_a_few_epsilons_near_a_root_are_rounding():
    roots = np.sqrt(0.6) + np.linspace(-1e-6, 1e-6, 101)
    report = parity.check(
        torchp3.as_operator(torchp3.legendre_p3),
        jaxp3.as_operator(lambda x: 0.5 * (5 * x**3 - 3 * x)),
        roots,
        only=["value", "vjp"],
    )
    report.assert_ok()


def test_a_port_that_loses_digits_is_rounding_and_is_reported():
    x = np.float32(2.0) ** -np.arange(1, 24, dtype=np.float32)
    report = parity.check(
        torchp3.as_operator(torch.log1p), jaxp3.as_operator(lambda x: jnp.log(1 + x)), x, only=["value"]
    )
    report.assert_ok()
    assert all(finding.mismatch.kind == "rounding" for finding in report["value"].findings)


def test_the_ladder():
    size = np.ones(3)
    right = np.array([1.0, 2.0, 3.0])

    def pairs(error64, error32):
        return {
            "float64": Pair(right + error64, right, size),
            "float32": Pair((right + error32).astype(np.float32), right.astype(np.float32), size),
        }

    assert climb(pairs(1e-15, 1e-6)) is None
    assert climb(pairs(1e-13, 1e-4)).kind == "rounding"  # as many epsilons in one as in the other
    assert climb(pairs(1e-6, 1e-6)).kind == "semantic"  # the same number in both
    assert climb(pairs(1e-10, 0)).kind == "semantic"
    assert climb(pairs(0, 1e-3)).kind == "semantic"  # in float32 alone
    assert climb(pairs(np.nan, np.nan)).kind == "semantic"
    assert climb({"float64": Pair(right + 1e-13, right, size)}).kind == "semantic"  # nothing to compare with


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nan_and_infinity_never_pass_for_numbers(dtype):
    got = np.array([np.nan, np.nan, 1, np.inf, np.inf, -np.inf, 0.0, 1]).astype(np.dtype(dtype))
    expected = np.array([np.nan, 1, np.nan, np.inf, 1, np.inf, -0.0, 1]).astype(np.dtype(dtype))
    epsilons = in_epsilons(got, expected, np.full(8, 1e30), dtype)
    np.testing.assert_array_equal(epsilons, [0, np.inf, np.inf, 0, np.inf, np.inf, 0, 0])


@pytest.mark.parametrize("f", [jnp.sin, lambda x: jnp.cumsum(x) ** 2], ids=["elementwise", "sums"])
@pytest.mark.parametrize("name", ["value", "vjp", "vjp of vjp"])
def test_what_is_near_by_the_results_alone_is_within_the_tolerance(f, name):
    operator = jaxp3.as_operator(f)
    case = make_case(operator, operator, LINE)
    quantity = case.quantity(name)
    (expected, size), random = (quantity.of(case.reference)[0], case.size(quantity)[0]), np.random.default_rng(0)
    near = []
    for epsilons in (1, 8, 30, 64, 1e4):
        for scale in (np.abs(expected), size, size.max()):
            got = expected + epsilons * np.finfo(float).eps * scale * random.choice([-1, 1], expected.shape)
            near.append(case.is_near(got, expected, "float64"))
            assert not (near[-1] and Pair(got, expected, size).beyond("float64").any())
    assert set(near) == {True, False}
    assert not case.is_near(np.where(np.arange(expected.size) == 3, np.nan, expected), expected, "float64")


def test_what_hardware_flushes_is_no_difference():
    tiny = np.finfo(np.float32).tiny
    assert in_epsilons(np.float32([0]), np.float32([tiny / 4]), np.zeros(1), "float32") < 1


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (-LINE, "sign"),
        (1.01 * LINE, r"1\.01 times"),
        (0 * LINE, "0 everywhere"),
        (np.roll(LINE, 1), "off by one element"),
        (LINE + 0.5, r"off by a constant, 0\.5"),
        (LINE[::-1] ** 3, "of the largest element off"),
        (np.where(np.arange(101) == 7, 9, LINE), "differs in 1 of 101"),
        (np.where(np.arange(101) == 7, np.nan, LINE), "NaN in 1 of 101"),
        (LINE[:50], r"shape is \(50,\) and not \(101,\)"),
        (LINE**2, "the square"),
    ],
)
def test_explanations(got, says):
    assert re.search(says, explain(got, LINE + 0.0, {"the square": LINE**2}))


def test_finite_differences_say_how_good_they_are():
    x = np.linspace(-2, 2, 101)
    random = np.random.default_rng(0)
    for f, slope in ((np.sin, np.cos(x)), (np.abs, np.sign(x)), (np.exp, np.exp(x))):
        known = true_vjp(lambda inputs, f=f: (f(inputs[0]),), (x,), (0,), (np.ones(101),), True, random, (slope,))
        sure = known.errors[0] < 1e-6
        assert sure.sum() >= 100  # all but the kink
        assert np.all(np.abs(known.values[0] - slope)[sure] <= 8 * known.errors[0][sure])


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("sign", "vjp"),
        ("zero", "vjp"),
        ("a transpose forgotten", "vjp"),  # not elementwise
        ("custom_jvp: sign", "jvp"),
        ("detached residual", "vjp of vjp"),
        ("custom_jvp: detached", "jvp of vjp"),
    ],
)
def test_two_sides_that_are_wrong_alike_are_held_against_truth(name, check):
    port = FAULTY[name].port
    report = parity.check(port, port, FAULTY[name].inputs, only=[check])
    assert {finding.place.side for finding in report[check].findings} == {"reference", "port"}
    assert report[check].verdict == "failed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "check", ["adjoint", "linearity", "transformed", "batched", "repeatable", "inputs intact", "dtypes"]
)
def test_each_side_is_looked_at_by_itself(check):
    faulty = next(f for name, f in FAULTY.items() if f.check == check)
    report = parity.check(faulty.port, faulty.reference, faulty.inputs, only=[check], **faulty.options)
    assert "reference" in {finding.place.side for finding in report[check].findings}


def test_truth_says_where_it_comes_from():
    assert "true by the complex step" in check(PAIRS["p3"], only=["vjp"])["vjp"].note
    assert "true by finite differences" in check(PAIRS["softplus"], only=["vjp of vjp"])["vjp of vjp"].note
    random = np.random.default_rng(0)
    x = random.normal(size=40)
    right = np.arange(40.0, 0, -1)

    def known(got):
        return true_vjp(lambda inputs: (np.cumsum(inputs[0]),), (x,), (0,), (np.ones(40),), False, random, (got,))

    assert known(right).method == "finite differences along a random direction"
    assert not known(right).errors[0].any()
    wrong = np.where(np.arange(40) == 33, 1.01 * right, right)
    assert "in 32 of 40 elements" in known(wrong).method
    assert np.isfinite(known(wrong).errors[0]).sum() == 32
    assert known(wrong).values[0][33] == pytest.approx(right[33])  # the wrong one is found among the others


def test_a_direction_sees_every_element():
    x = np.random.default_rng(0).normal(size=(30, 20))
    port = jax_rule(
        lambda x: jnp.cumsum(x, 1) ** 2,
        lambda x, v: jax.vjp(lambda x: jnp.cumsum(x, 1) ** 2, x)[1](v)[0].at[29, 19].multiply(1.01),
    )
    report = parity.check(jaxp3.as_operator(port), jaxp3.as_operator(port), x, only=["vjp"])
    assert {finding.mismatch.element for finding in report["vjp"].findings} == {(29, 19)}


# --- power


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_fault_is_planted_somewhere_and_noticed():
    noticed = set()
    for name in ("p3", "product", "matrix product", "scaled sine, broadcast", "p3, complex"):
        pair = PAIRS[name]
        case = make_case(torchp3.as_operator(pair.torch), jaxp3.as_operator(pair.jax), pair.inputs)
        planted = {fault.name for fault in FAULTS if is_plantable(case, fault)}
        result = parity.CHECKS["power"](case)
        noticed |= planted - {finding.fault for finding in result.findings}
    of_integers = {"set for add", "an ignored label counts"}  # in tests of their own
    of_integers |= {"mask forgotten", "mask of what is left out forgotten"}
    assert noticed == {fault.name for fault in FAULTS} - of_integers


@pytest.mark.parametrize(
    ("inputs", "missed", "advice"),
    [
        (np.zeros(5), "detached residual", "points whose second derivative is not 0"),
        (np.full((3, 3), 2.0), "stale residual", "elements are not all alike"),
    ],
)
def test_weak_inputs_are_called_so_with_what_to_add(inputs, missed, advice):
    report = parity.check(
        torchp3.as_operator(torchp3.legendre_p3), jaxp3.as_operator(jaxp3.legendre_p3), inputs, only=["power"]
    )
    assert report["power"].verdict == "failed"
    assert "weak inputs" in report["power"].note
    assert advice in {finding.fault: finding.explanation for finding in report["power"].findings}[missed]


@pytest.mark.slow
def test_one_axis_shows_no_wrong_axis_and_the_report_says_so():
    reference, port = torchp3.as_operator(lambda x: torch.softmax(x, 0)), jaxp3.as_operator(jax.nn.softmax)
    assert "with two the sides differ" in parity.check(reference, port, LINE, only=["power"])["power"].note
    assert "axis" not in parity.check(reference, reference, LINE, only=["power"])["power"].note
    assert not parity.check(reference, port, np.stack([LINE, LINE]), only=["value"]).ok


def test_a_fault_that_changes_nothing_is_none():
    case = make_case(torchp3.as_operator(lambda x: 2 * x), jaxp3.as_operator(lambda x: 2 * x), LINE)
    plantable = {fault.name for fault in FAULTS if is_plantable(case, fault)}
    assert not plantable & {"detached residual", "stale residual", "swapped arguments", "missing conjugate"}
    assert isinstance(FaultyPort(case.port, FAULTS[0]), parity.Operator)


# --- anybody's operators


@pytest.mark.parametrize("operator", [torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin)])
def test_between_is_called_once_between_the_passes(operator):
    for side in (operator, *operator.transformed().values()):
        calls = []
        side.interrupted(lambda calls=calls: calls.append(1)).vjp((LINE,), (LINE,))
        assert calls == [1]


# In PyTorch and in JAX, of what is given, and NumPy's arrays for it.
ANYBODYS = {
    "itself": (lambda x: x, lambda x: x, (LINE,)),
    "one is not used": (lambda x, y: x.sin(), lambda x, y: jnp.sin(x), (LINE, LINE)),
    "nothing to differentiate": (lambda x: x.detach(), jax.lax.stop_gradient, (LINE,)),
    "a constant output": (lambda x: (x.sin(), torch.ones(3)), lambda x: (jnp.sin(x), jnp.ones(3)), (LINE,)),
    "integers, in and out": (lambda x, i: (x[i] ** 2, i), lambda x, i: (x[i] ** 2, i), (LINE, np.array([3, 1]))),
    "scalars": (torch.mul, jnp.multiply, (np.array(2.0), np.array(3.0))),
    "empty": (torch.sin, jnp.sin, (np.ones((0, 3)),)),
    "empty, and not": (lambda x, y: x.sum() * y, lambda x, y: x.sum() * y, (np.ones((0, 3)), LINE)),
    "bfloat16": (torch.square, jnp.square, (np.array([1.0, 2.0]).astype(ml_dtypes.bfloat16),)),
    "several dtypes": (lambda x, y: x.sin() * y, lambda x, y: jnp.sin(x) * y, (LINE, LINE.astype(np.float32))),
    "complex and real": (torch.mul, jnp.multiply, (LINE + 1j, LINE)),
    "an infinite slope": (torch.sqrt, jnp.sqrt, (np.array([0.0, 1.0]),)),
    "a transpose": (lambda x: x.T @ x, lambda x: x.T @ x, (np.arange(12.0).reshape(3, 4),)),
}


@pytest.mark.filterwarnings("ignore:.*truncated to dtype:UserWarning")
@pytest.mark.parametrize("name", ANYBODYS)
def test_anybodys_operator_runs_in_parallel(name):
    in_torch, in_jax, inputs = ANYBODYS[name]
    for operator in (torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax)):
        ways = {**operator.transformed(), **(operator.compiled() if operator.framework.startswith("JAX") else {})}
        parallel = [way for way in ways if way in ("DistributedDataParallel", "shard_map", "sharded jax.jit")]
        assert parallel
        values = operator.value(inputs)
        cotangents = tuple(np.ones_like(y) for y in values if y.dtype.kind not in "iu")
        gradients = operator.vjp(inputs, cotangents)
        for way in parallel:
            if inputs[0].size == 1 and way == "sharded jax.jit":
                with pytest.raises(NotImplementedError, match="no input has an axis of 2"):
                    ways[way].value(inputs)
                continue
            for known, got in ((values, ways[way].value(inputs)), (gradients, ways[way].vjp(inputs, cotangents))):
                assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in known]
                for x, y in zip(got, known, strict=True):
                    np.testing.assert_allclose(wide(x), wide(y), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_anybodys_operator_runs_in_parallel_on_two_devices():
    command = [sys.executable, "-m", "pytest", __file__, "-k", "anybodys_operator_runs_in_parallel", "-q"]
    finished = subprocess.run(
        command, env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"}, capture_output=True, text=True, check=False
    )
    assert f"{len(ANYBODYS)} passed" in finished.stdout, finished.stdout


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_rank_raises_the_other_does_not_wait(rank):
    def raises(x):
        if threading.current_thread().name.endswith(f"_{rank}"):
            raise OverflowError("in one alone")
        return x

    parallel = torchp3.as_operator(raises).transformed()["DistributedDataParallel"]
    with pytest.raises(OverflowError, match="in one alone"):
        parallel.vjp((LINE,), (LINE,))


def test_what_a_mode_has_no_meaning_for_is_not_spoken_of():
    report = parity.check(torchp3.as_operator(torch.sin), torchp3.as_operator(torch.sin), LINE, only=["transformed"])
    assert report["transformed"].note == (
        "torch.func, one output and argument at a time, DistributedDataParallel: as eager"
    )
    with pytest.raises(NotImplementedError, match="DistributedDataParallel averages what comes to grad"):
        torchp3.as_operator(torch.sin).transformed()["DistributedDataParallel"].jvp((LINE,), (LINE,))


def test_a_function_that_jax_cannot_trace_is_no_fault_of_its_rule():
    report = parity.check(
        torchp3.as_operator(lambda x: x if x[0] > 0 else 2 * x),
        jaxp3.as_operator(lambda x: x if x[0] > 0 else 2 * x),
        LINE,
        only=["transformed"],
    )
    report.assert_ok()
    assert report["transformed"].note.count("refused: ") == 1
    assert "refused: the port, shard_map, value: TracerBoolConversionError" in report["transformed"].note


def test_the_seed_is_that_of_the_cotangents():
    sine = torchp3.as_operator(torch.sin)
    cotangents = [make_case(sine, sine, LINE, seed=seed).cotangents[0] for seed in (0, 0, 1)]
    assert np.array_equal(cotangents[0], cotangents[1])
    assert not np.array_equal(cotangents[0], cotangents[2])


@jax.custom_vjp
def without_forward_mode(x):
    return x


without_forward_mode.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))


def test_second_derivatives_in_jax_are_by_the_mode_that_they_are_named_after():
    # The gradient can be differentiated in reverse mode alone.
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (without_forward_mode(cotangent * jnp.cos(x)),))
    groups = (LINE,), (LINE,), (LINE,)
    np.testing.assert_allclose(jaxp3.as_operator(f).vjp_of_vjp(*groups)[0], -LINE * LINE * np.sin(LINE))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        jaxp3.as_operator(f).jvp_of_vjp(*groups)


def test_what_is_compiled_in_jax_is():
    runs = []
    for operator in jaxp3.as_operator(lambda x: runs.append(isinstance(x, jax.core.Tracer)) or x).compiled().values():
        operator.value((LINE,))
    assert runs == [True]


@pytest.mark.parametrize("first", [True, False], ids=["right, then wrong", "wrong, then right"])
def test_a_function_that_refers_to_something_else_is_checked_anew(first):
    limits = {True: 6.0, False: 4.0}  # of which the reference's is 6
    current = {}
    port = jaxp3.as_operator(lambda x: jnp.where(abs(x) < current["limit"], x * x, 0.0))
    for is_right in (first, not first):
        current["limit"] = limits[is_right]
        assert special(lambda x: torch.where(abs(x) < 6, x * x, 0), port, LINE, points=(5.0,)).verdict == (
            "passed" if is_right else "failed"
        )


def test_a_second_derivative_that_has_been_mended_is_right():
    slope = jax.custom_jvp(jnp.cos)
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda x, dx: (jnp.sin(x[0]), slope(x[0]) * dx[0]))
    sides = torchp3.as_operator(torch.sin), jaxp3.as_operator(sine)
    for factor, ok in ((-1.01, False), (-1.0, True)):
        slope.defjvp(lambda x, dx, factor=factor: (jnp.cos(x[0]), factor * jnp.sin(x[0]) * dx[0]))
        assert parity.check(*sides, LINE, only=["vjp of vjp", "jvp of jvp"]).ok == ok


def test_a_third_framework_fits_in():
    lines = "".join(map(inspect.getsource, (Term, Sine))).splitlines()
    assert len([line for line in lines if line.strip()]) <= 40
    assert isinstance(Sine(), parity.Operator)
    report = parity.check(Sine(), torchp3.as_operator(torch.sin), LINE, compiled=False, dtypes=["float32"])
    report.assert_ok()
    assert report["rule"].verdict == "not applicable"


@pytest.mark.parametrize("as_operator", [torchp3.as_operator, jaxp3.as_operator])
def test_static_keywords_and_chosen_arguments(as_operator):
    operator = as_operator(lambda x, y, power=1: x**power * y, arguments=(1,), power=3)
    x, y = np.array([2.0]), np.array([5.0])
    assert operator.value((x, y))[0] == 40
    (gradient,) = operator.vjp((x, y), (np.ones(1),))
    assert gradient == 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int32"])
@pytest.mark.parametrize("as_operator", [torchp3.as_operator, jaxp3.as_operator])
def test_adapters_keep_dtypes(as_operator, dtype):
    x = np.array([1, 2, 3]).astype(np.dtype(dtype))
    assert x.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    (result,) = as_operator(lambda x: x * x).value((x,))
    assert result.dtype == x.dtype
    np.testing.assert_array_equal(result, x * x)


def test_a_closed_form_is_the_truth():
    wrong = {"closed_form": np.cos, "only": ["value"]}
    report = parity.check(torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), LINE, **wrong)
    assert {finding.place.side for finding in report["value"].findings} == {"reference", "port"}
    report = parity.check(
        torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), LINE, closed_form=np.sin, only=["value", "vjp"]
    )
    report.assert_ok()
    assert "the closed form" in report["value"].note


def test_two_sides_that_are_wrong_alike_are_wrong():
    faulty = FAULTY["sign"]
    report = parity.check(faulty.port, faulty.port, LINE, only=["vjp"])
    assert report["vjp"].verdict == "failed"
    assert "surrogate=True" in report["vjp"].note
    parity.check(faulty.port, faulty.port, LINE, only=["vjp"], surrogate=True).assert_ok()


@pytest.mark.parametrize(
    ("f", "inputs", "says"),
    [
        (lambda x: None, LINE, "returned NoneType; return a"),
        (lambda x: 1.0, LINE, "returned float"),
        (lambda x: x @ x, np.ones((2, 3)), "cannot be called with inputs of float64[2, 3]"),
        (lambda x: x, ["a"], "give an array of numbers"),
        (lambda x: x, np.array([1e300]), "beyond float32's largest"),
        (lambda x: x, np.array([1, 2]), "no input is floating"),
        (lambda x: x, np.ones((0, 3)), "has an element, so that nothing could show a fault"),
        (lambda x, y: x, LINE, "cannot be called"),
    ],
)
@pytest.mark.parametrize("as_operator", [torchp3.as_operator, jaxp3.as_operator])
def test_what_cannot_be_checked_is_refused_in_a_line(as_operator, f, inputs, says):
    with pytest.raises(InputError) as caught:
        parity.check(as_operator(f), as_operator(f), inputs)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_operator", [torchp3.as_operator, jaxp3.as_operator])
def test_a_function_that_exits_is_refused(as_operator):
    with pytest.raises(InputError, match="SystemExit: 0"):
        parity.check(as_operator(lambda x: sys.exit(0)), as_operator(lambda x: x), LINE)


def special(f, g, inputs, **options):
    """What `check` says of special values."""
    port = g if isinstance(g, parity.Function) else jaxp3.as_operator(g)
    return parity.check(torchp3.as_operator(f), port, inputs, only=["special values"], **options)["special values"]


def test_ties_and_other_awkward_inputs_are_checked_where_they_are_named():
    rows = np.random.default_rng(5).normal(size=(2, 3))
    first, shared = lambda x: torch.max(x, 1)[0], lambda x: jnp.max(x, 1)
    assert special(first, shared, rows).verdict == "passed"
    result = special(first, shared, rows, awkward={"ties": np.ones((1, 2)), "no ties": np.arange(3.0)[None]})
    assert [finding.place for finding in result.findings] == [Place("port", "vjp", "inputs", special="ties")]
    assert result.note.startswith("ties, vjp, inputs: it is ")


def test_awkward_inputs_may_be_empty_and_shapes_are_compared_there():
    result = special(lambda x: x.sum(0), lambda x: x.sum(0, keepdims=x.size == 0), LINE, awkward={"none": np.zeros(0)})
    (finding,) = result.findings
    assert finding.place == Place("port", "value", special="none")
    assert finding.explanation == "it is of shapes [(1,)], and the reference's of [()]"


def test_who_raises_at_awkward_inputs_is_recorded_for_either_side():
    index = np.array([0, 1])
    result = special(lambda x, i: x[i], lambda x, i: x[i], (LINE, index), awkward={"beyond": (LINE, index + 200)})
    (refusal,) = result.refusals
    assert refusal.place == Place("reference", "value", special="beyond")
    assert str(refusal).startswith("the reference, beyond, value: IndexError")
    assert refusal.error.startswith("IndexError")


def test_each_special_number_that_differs_is_a_finding_of_its_own_once():
    result = special(lambda x: torch.clamp(x, -1, 1), lambda x: jnp.clip(x, -1, 1), LINE + 0.01, points=(1.0, -1.0))
    assert [finding.place for finding in result.findings] == [
        Place("port", quantity, path, number=point)
        for quantity, path in (("vjp", "inputs"), ("jvp", "output"))
        for point in (1.0, -1.0)
    ]
    assert all(finding.mismatch.precision == "float64" for finding in result.findings)


@pytest.mark.parametrize("point", [0.0, 1.5])
def test_second_derivatives_are_compared_at_zeros_and_at_the_users_points(point):
    def bent(where, plus):
        return lambda x: where((x > point - 0.01) & (x < point + 0.01), plus * (x - point) ** 2, 0 * x)

    result = special(bent(torch.where, 1.0), bent(jnp.where, 2.0), LINE + 0.05, points=(1.5,))
    assert Place("port", "vjp of vjp", "inputs", number=point) in [finding.place for finding in result.findings]


def test_the_closed_form_judges_both_sides_at_the_users_points():
    wrong = special(lambda x: torch.tanh(x), jnp.tanh, LINE, points=(2.0,), closed_form=lambda x: np.tanh(x) + (x == 2))
    assert {finding.place.side for finding in wrong.findings} == {"reference", "port"}
    assert all(finding.against == "the closed form" for finding in wrong.findings)


def test_a_function_of_whole_numbers_has_its_values_compared():
    rows = np.random.default_rng(5).normal(size=(2, 3))
    sides = torchp3.as_operator(lambda x: torch.argmax(x, 1)), jaxp3.as_operator(lambda x: jnp.argmax(x, 1))
    report = parity.check(*sides, rows, compiled=False)
    report.assert_ok()
    assert report["value"].verdict == report["batched"].verdict == "passed"
    assert (report["vjp"].verdict, report["vjp"].note) == ("not applicable", "no output is floating or complex")
    last = jaxp3.as_operator(lambda x: jnp.argmin(x, 1))
    assert parity.check(sides[0], last, rows, only=["value"])["value"].verdict == "failed"


def test_half_precision_is_checked_on_the_side_that_takes_it():
    square = np.array([[2.0, 0.5], [0.25, 1.0]])
    sides = torchp3.as_operator(torch.linalg.det), jaxp3.as_operator(lambda a: jnp.linalg.det(a) * 1.5)
    result = parity.check(*sides, square, only=["low precision"])["low precision"]
    places = {refusal.place for refusal in result.refusals}
    assert {place.side for place in places} == {"reference"}
    assert {(place.precision, place.quantity) for place in places} >= {("float16", "value"), ("bfloat16", "vjp")}
    assert "float16 within" in result.note


def test_findings_that_are_more_than_rounding_come_first():
    kinds = ["rounding", "semantic", "rounding"]
    findings = [
        parity.Finding(
            Place("port", "value"), "", kind, climb({"float64": Pair(LINE + 1, LINE, np.ones(101))})._replace(kind=kind)
        )
        for kind in kinds
    ]
    assert [finding.explanation for finding in judged("x", findings, "").findings] == [
        "semantic",
        "rounding",
        "rounding",
    ]


def test_names_that_there_are_not():
    sine = torchp3.as_operator(torch.sin)
    with pytest.raises(InputError, match="no check 'vpj'; there are 'value', 'vjp'"):
        parity.check(sine, sine, LINE, only=["vpj"])
    with pytest.raises(InputError, match="asked for and left out at once"):
        parity.check(sine, sine, LINE, only=["compiled"], compiled=False)
    with pytest.raises(InputError, match="dtype 'float8' is not one of"):
        parity.check(sine, sine, LINE, dtypes=["float8"])
    with pytest.raises(InputError, match=r"no operator; make one of it with torchp3\.as_operator"):
        parity.check(torch.sin, sine, LINE)
    with pytest.raises(InputError, match=r"by inputs\[1\], and the port by inputs\[0\], inputs\[1\]; give"):
        parity.check(torchp3.as_operator(torch.mul, arguments=(1,)), torchp3.as_operator(torch.mul), (LINE, LINE))
    with pytest.raises(InputError, match="seed -1 is not"):
        parity.check(sine, sine, LINE, seed=-1)
    with pytest.raises(InputError, match=r"points .* are no numbers"):
        parity.check(sine, sine, LINE, points=["a"])
    with pytest.raises(InputError, match="the awkward inputs 'ties' are int64, and the others float64; give as many"):
        parity.check(sine, sine, LINE, awkward={"ties": np.array([1, 1])})
    with pytest.raises(InputError, match="the awkward inputs 'two' are float64, float64, and the others float64"):
        parity.check(sine, sine, LINE, awkward={"two": (LINE, LINE)})
    for awkward in ([LINE], "ties", {3: LINE}):
        with pytest.raises(InputError, match="awkward inputs have names; give a dict of them"):
            parity.check(sine, sine, LINE, awkward=awkward)
    with pytest.raises(InputError, match="closed_form gives arrays of shapes"):
        parity.check(sine, sine, LINE, closed_form=np.sum)
    with pytest.raises(InputError, match="closed_form gives object, and must give an array of numbers"):
        parity.check(sine, sine, LINE, closed_form=lambda x: None)
    with pytest.raises(InputError, match="closed_form cannot be called"):
        parity.check(sine, sine, LINE, closed_form=lambda x: 1 / 0)
    report = parity.check(sine, sine, LINE, dtypes=(dtype for dtype in ["float32"]), only=["dtypes"])
    assert report["dtypes"].note == "float32: kept"


# --- the report


@pytest.fixture(scope="module")
def failed():
    faulty = FAULTY["1 % too much"]
    return parity.check(faulty.reference, faulty.port, faulty.inputs, only=["value", "vjp", "jvp"])


def test_the_report_says_what_is_wrong_and_where(failed):
    text = str(failed)
    (finding, *_) = failed["vjp"].findings
    for said in (
        "the port, vjp, inputs, against the complex step: ",
        "1.01 times",
        "input ",
        "expected ",
        "float64 epsilons",
        "semantic",
    ):
        assert said in str(finding)
    lines = text.splitlines()
    assert lines[1] == failed.summary
    assert lines[2].startswith("First cause: vjp: the port, inputs, against the complex step: it is 1.01 times")
    assert text.rstrip().endswith("\n".join(lines[1 : lines.index("")]))
    assert len(lines) <= 40


def test_a_failure_that_follows_from_another_is_told_in_half_a_line():
    faulty = FAULTY["1 % too much"]
    checks = ["value", "vjp", "jvp", "vjp of vjp", "special values"]
    report = parity.check(faulty.reference, faulty.port, faulty.inputs, only=checks)
    assert [name for name, _ in report.causes] == ["vjp"]
    for result in report.failed[1:]:
        assert report.follows_from(result) == "vjp"
    assert "follows from vjp" in str(report)
    assert len(str(report).splitlines()) <= 40


def test_a_failure_of_a_mode_follows_from_nothing():
    faulty = FAULTY["batch rule in the gradient"]
    report = parity.check(faulty.reference, faulty.port, faulty.inputs, only=["value", "vjp", "batched"])
    assert "batched" in [name for name, _ in report.causes]


def test_of_many_findings_of_a_check_three_are_told():
    sides = torchp3.as_operator(lambda x: 1.0 * x), jaxp3.as_operator(lambda x: jnp.clip(x, -100, 100))
    report = parity.check(*sides, LINE, only="special values", edges="fail")
    told = [line for line in report.others() if line.startswith("special values: the port")]
    assert len(told) == 3
    assert f"special values: {len(report.causes) - 4} more" in list(report.others())


def test_json_holds_everything(failed):
    read = json.loads(failed.to_json())
    assert read["ok"] is False
    assert [(c["name"], c["verdict"]) for c in read["checks"]] == [(c.name, c.verdict) for c in failed.checks]
    assert read["checks"][1]["findings"][0]["mismatch"]["kind"] == "semantic"


PYTEST_FILE = """
import jax.numpy as jnp, numpy as np, torch, jaxp3, torchp3
from p3 import parity

test_sine = parity.parity_test(
    torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), np.linspace(-3, 3, 51), compiled=False
)
test_cosine = parity.parity_test(
    torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.cos), np.linspace(-3, 3, 51), only=["value"]
)
"""


def test_each_check_is_a_test_of_its_own(tmp_path):
    (tmp_path / "test_ports.py").write_text(PYTEST_FILE)
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--no-header", tmp_path / "test_ports.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "test_sine[vjp-of-vjp] PASSED" in finished.stdout
    assert "test_sine[rule] SKIPPED (not applicable: no side has" in finished.stdout
    assert "test_cosine[value] FAILED" in finished.stdout
    assert "test_sine[value] PASSED" in finished.stdout
