"""Single precision inside, edges, refusals and rules that are no derivatives each have the verdict that they should."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.autograd.function import once_differentiable

import jaxp3
import torchp3
from p3 import InputError, parity
from tests.support.faulty_ports import jax_rule
from tests.support.ported import jax_embedding, torch_embedding
from tests.support.right_pairs import LINE, PAIRS

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(3, 8))
HEADS = tuple(np.random.default_rng(seed).normal(size=(1, 4, 2, 8)) for seed in range(3))
UNCOMPILED = {"compiled": False}


def at_issue_or_all(*checks):
    """The test runs some checks, and all of them where it is slow."""
    return pytest.mark.parametrize(
        "only", [checks, pytest.param(None, marks=pytest.mark.slow)], ids=["at issue", "all"]
    )


def some_by_default(cases, *names):
    """The test runs these cases, and all of them where it is slow."""
    return pytest.mark.parametrize(
        "name", [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in cases]
    )


def rms_norm_in_torch(x, epsilon=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def rms_norm_in_jax(x, epsilon=1e-6):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def in_float32(f, **options):
    """The function, computed in float32 whatever it is given; in either framework."""

    def inside(x):
        return (
            f(x.float(), **options).to(x.dtype)
            if isinstance(x, torch.Tensor)
            else f(x.astype(jnp.float32), **options).astype(x.dtype)
        )

    return inside


gelu_in_jax = functools.partial(jax.nn.gelu, approximate=False)


def attention_in_torch(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def check(in_torch, in_jax, inputs=ROWS, **options):
    return parity.check(torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax), inputs, **options)


SINGLE = {
    "Llama's RMSNorm": (rms_norm_in_torch, rms_norm_in_jax, ROWS),
    "RMSNorm in float64 on one side": (
        rms_norm_in_torch,
        lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
        ROWS,
    ),
    "a router's softmax": (in_float32(torch.softmax, dim=-1), in_float32(jax.nn.softmax), ROWS),
    "softmax in float32 on one side": (lambda x: torch.softmax(x, -1), in_float32(jax.nn.softmax), ROWS),
    "gelu": (in_float32(torch.nn.functional.gelu), in_float32(gelu_in_jax), ROWS),
    "a residual": (lambda x: x + rms_norm_in_torch(x), lambda x: x + rms_norm_in_jax(x), ROWS),
    "tanh": (in_float32(torch.tanh), in_float32(jnp.tanh), ROWS),
    "jax.nn.dot_product_attention": (attention_in_torch, jax.nn.dot_product_attention, HEADS),
    "sine": (torch.sin, in_float32(jnp.sin), LINE),
    "a constant": (lambda x: 0.1 * x, lambda x: float(np.float32(0.1)) * x, LINE),
}


@at_issue_or_all("value", "vjp", "jvp of vjp", "adjoint", "special values")
@some_by_default(SINGLE, "Llama's RMSNorm", "gelu", "sine")
def test_single_precision_inside_is_no_failure(name, only):
    in_torch, in_jax, inputs = SINGLE[name]
    report = check(in_torch, in_jax, inputs, only=only, **UNCOMPILED)
    report.assert_ok()
    assert "single precision" in {result.verdict for result in report.checks}
    assert {difference.kind for difference in report.differences} <= {"single precision", "rounding", "edge"}
    assert only or report["power"].note.startswith("100 %")


FAULTS_IN_SINGLE = {
    "no epsilon": (rms_norm_in_torch, functools.partial(rms_norm_in_jax, epsilon=0.0), ROWS),
    "another epsilon": (rms_norm_in_torch, functools.partial(rms_norm_in_jax, epsilon=1e-5), ROWS),
    "another gelu": (in_float32(torch.nn.functional.gelu), in_float32(jax.nn.gelu), ROWS),
    "another scale": (in_float32(torch.sin), in_float32(lambda x: 1.000002 * jnp.sin(x)), ROWS),
    "half precision": (torch.sin, lambda x: jnp.sin(x.astype(jnp.float16)).astype(x.dtype), LINE),
    "one element": (in_float32(torch.sin), in_float32(lambda x: jnp.sin(x).at[1, 1].mul(1.0001)), ROWS),
}


@some_by_default(FAULTS_IN_SINGLE, "no epsilon", "another gelu", "one element")
def test_a_fault_in_single_precision_is_one(name):
    in_torch, in_jax, inputs = FAULTS_IN_SINGLE[name]
    report = check(in_torch, in_jax, inputs, only=["value", "vjp"])
    assert report["value"].verdict == "failed"
    assert report.first.kind == "semantic"
    assert "float32" not in report.first.explanation


def test_a_wrong_rule_of_a_function_in_single_precision_is_held_against_the_truth():
    f = jax_rule(rms_norm_in_jax, lambda x, v: 1.1 * jax.vjp(rms_norm_in_jax, x)[1](v)[0])
    report = parity.check(jaxp3.as_operator(f), jaxp3.as_operator(f), ROWS, only="vjp")
    assert report["vjp"].verdict == "failed"
    assert "surrogate=True" in report.first.explanation


EDGES = {
    "gelu": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), jax.nn.gelu),
    "a polynomial": (torchp3.legendre_p3, lambda x: 0.5 * (5 * x**3 - 3 * x)),
    "NaN hidden": (torch.sin, lambda x: jnp.nan_to_num(jnp.sin(x))),
    "the smallest": (lambda x: x, lambda x: jnp.where((x != 0) & (jnp.abs(x) < 1e-38), 1, x)),
}


@pytest.mark.parametrize("name", EDGES)
def test_what_differs_at_the_far_ends_alone_fails_only_where_that_is_asked_for(name):
    in_torch, in_jax = EDGES[name]
    report = check(in_torch, in_jax, LINE, only="special values")
    edges = [difference for difference in report.differences if difference.kind == "edge"]
    if name != "gelu":
        assert edges
    assert report.ok
    assert "expected" not in str(report)
    assert check(in_torch, in_jax, LINE, only="special values", edges="fail").ok == (not edges)


def test_a_far_end_that_is_given_is_no_edge():
    def hidden(x):
        return jnp.nan_to_num(jnp.sin(x))

    for inputs, points in ((np.append(LINE, np.inf), ()), (LINE, (np.inf,))):
        assert not check(torch.sin, hidden, inputs, only="special values", points=points).ok


def test_an_overflow_of_an_exponential_is_no_edge():
    def softplus(x):
        return torch.logaddexp(x, torch.zeros_like(x))

    assert not check(softplus, lambda x: jnp.log(1 + jnp.exp(x)), LINE, only="special values").ok


class OnceDifferentiable(torch.autograd.Function):
    """The cube, whose rule has no derivative, and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x * x * cotangent


def test_once_differentiable_is_a_refusal():
    sides = torchp3.as_operator(OnceDifferentiable), jaxp3.as_operator(lambda x: x**3)
    for reference, port in (sides, sides[::-1]):
        report = parity.check(reference, port, LINE, only=["vjp of vjp", "power"])
        report.assert_ok()
        assert "once_differentiable" in report["vjp of vjp"].note
        assert report["vjp of vjp"].verdict == "refused"
        assert report["power"].note.startswith("100 %")
        assert "detached residual" not in report["power"].note


def test_a_port_that_cannot_be_jitted_or_batched_fails():
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def masked(x, mask):
        return x * mask

    masked.defvjp(lambda x, mask: (x * mask, None), lambda mask, _, cotangent: (cotangent * mask,))
    inputs = np.arange(1.0, 6), np.array([1, 0, 1, 1, 0], bool)
    sides = jaxp3.as_operator(lambda x, mask: x * mask), jaxp3.as_operator(masked)
    report = parity.check(*sides, inputs, only=["value", "vjp", "batched", "compiled"])
    assert {result.name for result in report.failed} == {"batched", "compiled"}
    assert "as eager" not in report["compiled"].note
    assert "nondiff_argnums" in report["compiled"].note


def test_both_sides_may_refuse_a_transform():
    in_torch, in_jax = (lambda x: x * (2 if x.sum() > 0 else 3) for _ in range(2))
    report = check(in_torch, in_jax, ROWS, only=["batched"])
    assert report["batched"].verdict == "refused"


class Clipped(torch.autograd.Function):
    """The identity, whose rule clips its cotangent."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent.clamp(-1, 1)


def test_a_rule_that_is_meant_to_be_not_linear():
    clipped = jax_rule(lambda x: 1.0 * x, lambda x, v: jnp.clip(v, -1, 1))
    assert "say linear=False" in str(check(Clipped, clipped, only="linearity"))
    report = check(Clipped, clipped, linear=False, only=["vjp", "vjp of vjp", "linearity", "transformed", "power"])
    report.assert_ok()
    assert report["power"].note.startswith("100 %")
    other = jax_rule(lambda x: 1.0 * x, lambda x, v: jnp.clip(v, -1.5, 1))
    assert not check(Clipped, other, linear=False, only="vjp").ok


def test_cotangents_and_tangents_are_on_both_sides_of_one_and_never_on_it():
    numbers = np.abs(
        parity.checker.make_case(torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.sin), LINE).cotangents[0]
    )
    assert (numbers < 1).any()
    assert (numbers > 1).any()
    assert not (numbers * 8 == np.round(numbers * 8)).any()
    np.testing.assert_array_equal(numbers.astype(jnp.bfloat16).astype(float), numbers)


NOTHING = {
    "no outputs": (lambda x: (), lambda x: (), {}, "gives no number"),
    "an output without elements": (lambda x: x[:0], lambda x: x[:0], {}, "gives no number"),
    "NaN everywhere": (lambda x: x * torch.nan, lambda x: x * jnp.nan, {}, "gives no finite number"),
    "infinite everywhere": (lambda x: x * 0 + torch.inf, lambda x: x * 0 + jnp.inf, {}, "gives no finite number"),
    "a closed form that is NaN": (torch.sin, jnp.sin, {"closed_form": lambda x: x * np.nan}, "closed_form gives no"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_check_is_told(name):
    in_torch, in_jax, options, says = NOTHING[name]
    with pytest.raises(InputError, match=says):
        check(in_torch, in_jax, ROWS, **options)


def test_a_derivative_that_is_nowhere_finite_fails():
    report = check(torch.sqrt, jnp.sqrt, np.zeros(5), only=["value", "vjp"])
    assert report["value"].verdict == "passed"
    assert report["vjp"].verdict == "failed"
    assert "no element of it is finite" in report["vjp"].note


@jax.custom_vjp
def scaled(x, c):
    return x * c


scaled.defvjp(lambda x, c: (x * c, (x, c)), lambda residuals, v: (v * residuals[1], (residuals[0] * v).sum()))
biased = jax_rule(lambda x, b: x + b, lambda x, b, v: (v, v.sum(0)))
DROPPED = jax_rule(lambda x, mask: 2 * x * mask, lambda x, mask, v: (2 * v * mask, None))
RANKS = {
    "a scalar": (lambda x, c: x * c, scaled, (ROWS[0], np.array(1.5))),
    "a scalar and a table": (lambda x, c: x * c, scaled, (ROWS, np.array(1.5))),
    "a bias": (lambda x, b: x + b, biased, (ROWS, ROWS[0])),
    "a mask": (lambda x, mask: 2 * x * mask, DROPPED, (ROWS, ROWS > 0)),
    "tables alone": (torch.sin, lambda x: jnp.sin(x) + jnp.zeros((1, x.shape[1]), x.dtype), ROWS),
}


@at_issue_or_all("shapes", "special values")
@some_by_default(RANKS, "a scalar", "a bias")
def test_arguments_keep_the_rank_that_they_were_given(name, only):
    in_torch, in_jax, inputs = RANKS[name]
    report = check(in_torch, in_jax, inputs, only=only, **UNCOMPILED)
    report.assert_ok()
    assert report["shapes"].verdict == report["special values"].verdict == "passed"


def test_a_scalar_whose_gradient_is_not_summed_is_noticed():
    wrong = jax_rule(lambda x, c: x * c, lambda x, c, v: (v * c, (x * v).mean()))
    assert not check(lambda x, c: x * c, wrong, (ROWS, np.array(1.5)), only="vjp").ok


SYMMETRIC = (lambda a: a @ a.T + 4 * np.eye(4))(RANDOM.normal(size=(4, 4)))
SHARES = (lambda x: x / x.sum(-1, keepdims=True))(RANDOM.uniform(0.5, 1, (3, 5)))


def positive(a):
    values, vectors = np.linalg.eigh(symmetrized(a))
    return (vectors * np.maximum(values, 1.0)) @ vectors.T


def symmetrized(x):
    return (x + np.swapaxes(x, -1, -2)) / 2


def normalized(x):
    return x / x.sum(-1, keepdims=True)


WITHIN = {
    "cholesky": (torch.linalg.cholesky, jnp.linalg.cholesky, SYMMETRIC, symmetrized),
    "eigvalsh": (torch.linalg.eigvalsh, jnp.linalg.eigvalsh, SYMMETRIC, symmetrized),
    "entropy": (
        lambda p: -(p * torch.log(p)).sum(-1),
        lambda p: -(p * jnp.log(p)).sum(-1),
        SHARES,
        normalized,
    ),
    "one of two arguments": (
        lambda a, b: torch.cholesky_solve(b, torch.linalg.cholesky(a)),
        lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b),
        (SYMMETRIC, RANDOM.normal(size=(4, 2))),
        lambda a, b: (symmetrized(a), b),
    ),
    "a form of a row": (  # of which one gradient is symmetric and the other is not, at zeros and other rows as well
        lambda a, x, i: x[i] @ torch.linalg.solve(a, x[i]),
        lambda a, x, i: (jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(a), x[i], lower=True) ** 2).sum(),
        (SYMMETRIC, RANDOM.normal(size=6), np.array([4, 0, 3, 3])),
        lambda a, x, i: (positive(a), x, i),
    ),
    "by name": (
        lambda *, a, b: torch.linalg.cholesky(a) @ b,
        lambda *, a, b: jnp.linalg.cholesky(a) @ b,
        {"b": RANDOM.normal(size=(4, 2)), "a": SYMMETRIC},
        lambda *, a, b: {"a": symmetrized(a), "b": b},
    ),
}


@at_issue_or_all("value", "vjp", "jvp", "vjp of jvp", "batched", "special values", "integers")
@some_by_default(WITHIN, "eigvalsh", "entropy", "a form of a row")
def test_inputs_that_must_stay_in_a_domain(name, only):
    in_torch, in_jax, inputs, project = WITHIN[name]
    report = check(in_torch, in_jax, inputs, project=project, only=only, **UNCOMPILED)
    report.assert_ok()
    assert "in the domain" in report["vjp"].note
    assert only or report["power"].note.startswith("100 %")


def rotation(q, stack):
    w, x, y, z = (q[..., k] for k in range(4))
    return stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)


def rotation_of_any_length(q):
    w, x, y, z = (q[..., k] for k in range(4))
    return jnp.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)


QUATERNIONS = RANDOM.normal(size=(3, 4))


def unit(q):
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


@at_issue_or_all("value", "vjp", "jvp", "vjp of vjp", "jvp of jvp", "special values")
def test_in_a_curved_domain_sides_may_differ_off_it(only):
    in_torch = functools.partial(rotation, stack=torch.stack)
    report = check(in_torch, rotation_of_any_length, QUATERNIONS, project=unit, only=only, **UNCOMPILED)
    report.assert_ok()
    assert report.case.bends
    wrong = check(in_torch, lambda q: rotation_of_any_length(1.001 * q), QUATERNIONS, project=unit, only="vjp")
    assert not wrong.ok


def test_a_projection_leaves_what_is_in_the_domain():
    with pytest.raises(InputError, match=r"^project changes inputs again after it is projected; give a function"):
        check(torch.log, jnp.log, np.array([0.5, 2.0]), project=lambda x: np.abs(x) + 0.1, only="vjp")


def test_a_wrong_gradient_in_a_domain_is_one():
    wrong = jax_rule(jnp.linalg.cholesky, lambda x, v: 1.01 * jax.vjp(jnp.linalg.cholesky, x)[1](v)[0])
    options = {"project": symmetrized, "only": ["vjp", "jvp of vjp"]}
    assert not check(torch.linalg.cholesky, wrong, SYMMETRIC, **options)["vjp"].is_right
    both = parity.check(*[jaxp3.as_operator(wrong)] * 2, SYMMETRIC, **options)
    assert not both["vjp"].is_right


def test_without_a_projection_it_is_said_what_to_do():
    report = check(torch.linalg.cholesky, jnp.linalg.cholesky, SYMMETRIC, only=["vjp", "jvp"])
    assert "if inputs must stay symmetric, symmetrize inside, or give project=" in str(report)
    inside = check(
        lambda x: torch.linalg.cholesky((x + x.mT) / 2),
        lambda x: jnp.linalg.cholesky((x + x.mT) / 2),
        SYMMETRIC,
        only=["vjp", "jvp"],
    )
    inside.assert_ok()


def test_a_projection_gives_what_it_is_given():
    for project in (lambda x: x[:2], lambda x: (x, x), lambda x: 1 / 0):
        with pytest.raises(InputError, match=r"project (must give as many arguments|cannot be called)"):
            check(torch.sin, jnp.sin, SYMMETRIC, project=project, only="vjp")


TWO_RULES = ["vjp", "jvp", "adjoint", "special values"]
PADDED = (np.array([1, 3, 0, 3]), RANDOM.normal(size=(4, 3)))


def test_a_reference_with_another_forward_rule_than_its_gradient_fails_no_port():
    report = check(torch_embedding, jax_embedding, PADDED, only=TWO_RULES, surrogate=True)
    report.assert_ok()
    assert report["jvp"].note == "the port's jvp is the transpose of its vjp; the reference's is not"


def test_a_port_with_another_forward_rule_than_its_gradient_fails():
    sides = jaxp3.as_operator(jax_embedding), torchp3.as_operator(torch_embedding)
    report = parity.check(*sides, PADDED, only=TWO_RULES, surrogate=True, **UNCOMPILED)
    assert [report[name].verdict for name in TWO_RULES] == ["passed", "failed", "failed", "failed"]


def test_a_rule_that_is_no_derivative_may_not_differ_between_the_sides():
    wrong = functools.partial(jax_embedding, padding=None)
    assert check(torch_embedding, wrong, PADDED, only="vjp", surrogate=True)["vjp"].verdict == "failed"


def test_a_dtype_that_a_framework_says_it_does_not_take_is_refused():
    matrix = 0.3 * RANDOM.normal(size=(3, 3))
    report = check(torch.matrix_exp, jax.scipy.linalg.expm, matrix, only="dtypes", dtypes=["float16", "float32"])
    report.assert_ok()
    assert "dtype=float16 is not supported" in str(report["dtypes"].refusals[0])


@pytest.mark.slow
def test_that_the_references_rule_does_not_run_in_a_mode_fails_no_port():
    in_torch, in_jax, inputs, options = PAIRS["straight-through rounding"]
    report = check(in_torch, in_jax, inputs, only=["vjp", "rule", "compiled"], **options)
    report.assert_ok()
    assert "the reference's rule does not run in torch.compile of torch.func" in report["compiled"].note
    sides = jaxp3.as_operator(in_jax), torchp3.as_operator(in_torch)
    report = parity.check(*sides, inputs, only=["rule", "compiled"], **options)
    assert [result.verdict for result in report.checks] == ["failed", "failed"]


def test_a_constant_in_float32_makes_derivatives_single_precision_as_well():
    def in_torch(x, y):
        return torch.nn.functional.cross_entropy(x - torch.nn.functional.one_hot(y, 3) * 0.3, y)

    def in_jax(x, y):
        chosen = jax.nn.one_hot(y, 3, dtype=x.dtype)
        return -(chosen * jax.nn.log_softmax(x - chosen * 0.3)).sum(-1).mean()

    inputs = (np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1]))
    report = check(in_torch, in_jax, inputs, only=["value", "vjp", "jvp", "vjp of vjp", "jvp of jvp"])
    assert {result.verdict for result in report.checks} == {"single precision"}


def test_numbers_that_differ_in_their_last_digits_are_shown_with_them():
    report = check(torch.sin, lambda x: jnp.sin(x) * (1 + 1e-11), LINE, only="value")
    got, expected = re.search(r": (\S+), expected (\S+);", str(report).replace("\n", " ")).groups()
    assert got != expected


def test_what_follows_from_a_value_is_not_told_again_for_other_labels():
    def in_jax(logits, labels):
        return -2 * jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    inputs = (RANDOM.normal(size=(4, 3)), np.array([0, 2, 1, 1]))
    report = check(torch.nn.functional.cross_entropy, in_jax, inputs, only=["value", "integers"])
    assert len(report.causes) == 1
    assert report.follows_from(report["integers"]) == "value"


def test_what_a_side_raises_in_several_places_is_told_once():
    class NoVmap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, v):
            return v, v

    report = check(NoVmap, lambda x, y: x * y, (LINE, LINE), only="batched")
    assert report["batched"].note.count("must override the setup_context") == 1
    assert "other places)" in report["batched"].note
