"""Whole numbers and masks are varied, and what the given ones do not show is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxp3
import torchp3
from p3 import InputError, parity
from p3.parity.checker import make_case
from p3.parity.checks.integers import variations
from tests.support.faulty_ports import jax_rule
from tests.support.right_pairs import LINE

RANDOM = np.random.default_rng(0)
WEIGHT, ROWS = RANDOM.normal(size=(7, 3)), RANDOM.normal(size=(3, 5))
LOGITS = RANDOM.normal(size=(6, 4))
LABELS, IGNORING = np.array([0, 1, 2, 3, 3, 1]), np.array([0, 1, -100, 3, 3, -100])
MASK = RANDOM.normal(size=(3, 5)) > 0


def check(in_torch, in_jax, inputs, **options):
    return parity.check(torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax), inputs, compiled=False, **options)


def cross_entropy_in_jax(logits, labels):
    log_probabilities, kept = jax.nn.log_softmax(logits), labels != -100
    chosen = jnp.take_along_axis(log_probabilities, jnp.where(kept, labels, 0)[:, None], 1)[:, 0]
    return -(chosen * kept).sum() / kept.sum()


def cross_entropy_that_ignores_nothing(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0].mean()


RIGHT = {
    "embedding": (lambda w, i: w[i], lambda w, i: w[i], (WEIGHT, np.array([1, 2, 3, 6]))),
    "cross entropy": (torch.nn.functional.cross_entropy, cross_entropy_in_jax, (LOGITS, IGNORING)),
    "a mask": (lambda x, m: torch.where(m, x, 0.0), lambda x, m: jnp.where(m, x, 0.0), (ROWS, MASK)),
    "gather": (
        lambda x, i: torch.take_along_dim(x, i, 1),
        lambda x, i: jnp.take_along_axis(x, i, 1),
        (ROWS, np.array([[0, 1], [2, 2], [4, 3]])),
    ),
    "segments": (
        lambda x, i: torch.zeros((4, 5), dtype=x.dtype).index_add(0, i, x),
        lambda x, i: jax.ops.segment_sum(x, i, 4, indices_are_sorted=True),
        (ROWS, np.array([0, 0, 3])),
    ),
    "positions": (
        lambda x, i: x * torch.cos(i.to(x.dtype))[:, None],
        lambda x, i: x * jnp.cos(i.astype(x.dtype))[:, None],
        (ROWS, np.arange(3)),
    ),
    "a permutation": (lambda x, i: x[i], lambda x, i: x[i], (ROWS, np.array([2, 0, 1]))),
    "rows put in an order": (
        lambda x, i: torch.zeros_like(x).index_put((i,), x),
        lambda x, i: jnp.zeros_like(x).at[i].set(x),
        (ROWS, np.array([2, 0, 1])),
    ),
    "an order in which a port puts otherwise": (
        lambda x, i: torch.zeros_like(x).index_put((i,), x),
        lambda x, i: jnp.zeros_like(x).at[i[::-1]].set(x[::-1]),
        (ROWS, np.array([2, 0, 1])),
    ),
}


@pytest.mark.parametrize("only", ["integers", pytest.param(None, marks=pytest.mark.slow)], ids=["at issue", "all"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (k % 3 > 0)) for k, name in enumerate(RIGHT)]
)
def test_a_right_port_raises_no_alarm(name, only):
    report = check(*RIGHT[name], only=only)
    report.assert_ok()
    assert report["integers"].verdict == "passed"
    assert only or report["power"].note.startswith("100 %")


def embedding_that_sets(w, i, v):
    return jnp.zeros_like(w).at[i].set(v), None


WRONG = {
    "set for add": (lambda w, i: w[i], jax_rule(lambda w, i: w[i], embedding_that_sets), (WEIGHT, np.arange(1, 5))),
    "set for add at a permutation": (
        lambda w, i: w[i],
        jax_rule(lambda w, i: w[i], embedding_that_sets),
        (WEIGHT, np.array([2, 0, 3, 1, 4, 6, 5])),
    ),
    "positions from 1": (
        lambda x, i: x * i.to(x.dtype)[:, None],
        lambda x, i: x * jnp.arange(1, 4, dtype=x.dtype)[:, None],
        (ROWS, np.array([1, 2, 3])),
    ),
    "a mask in the value alone": (
        lambda x, m: torch.where(m, x, 0.0) * 2,
        jax_rule(lambda x, m: jnp.where(m, x, 0.0) * 2, lambda x, m, v: (2 * v * MASK, None)),
        (ROWS, MASK),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_port_that_is_right_at_the_given_numbers_alone_fails(name):
    report = check(*WRONG[name], only=["value", "vjp", "integers"])
    assert report["integers"].verdict == "failed"
    assert report["value"].is_right
    assert report["vjp"].is_right


@pytest.mark.parametrize("port", [cross_entropy_in_jax, cross_entropy_that_ignores_nothing])
def test_that_no_label_is_ignored_is_told(port):
    report = check(torch.nn.functional.cross_entropy, port, (LOGITS, LABELS), only="power")
    assert "not: an ignored label counts" in report["power"].note
    assert "add labels of which some are ignored" in report["power"].findings[0].explanation


def test_labels_that_are_used_otherwise_as_well_need_not_be_ignored():
    def margin_in_torch(logits, labels):
        return torch.nn.functional.cross_entropy(logits - torch.nn.functional.one_hot(labels, 4).to(logits), labels)

    def margin_in_jax(logits, labels):
        return cross_entropy_that_ignores_nothing(logits - jax.nn.one_hot(labels, 4, dtype=logits.dtype), labels)

    report = check(margin_in_torch, margin_in_jax, (LOGITS, LABELS), only="power")
    assert report["power"].verdict == "passed"


@pytest.mark.parametrize("dtype", [bool, np.int32])
@pytest.mark.parametrize("port", [lambda x, m: x * x * m, lambda x, m: x * x], ids=["right", "forgotten"])
def test_that_a_mask_is_true_everywhere_is_told(port, dtype):
    report = check(lambda x, m: x * x * m, port, (ROWS, np.ones_like(MASK, dtype)), only="power")
    assert "not: mask forgotten" in report["power"].note


@pytest.mark.parametrize("flag", [np.array(False), np.array([0]), np.array([True])])
def test_one_number_is_no_mask(flag):
    report = check(lambda x, m: x * x * (1 + m), lambda x, m: x * x * (1 + m), (ROWS, flag), only="power")
    assert report["power"].verdict == "passed"


def test_that_a_mask_is_false_everywhere_is_told():
    def advantages(x, done):
        return x[:-1] + 0.9 * x[1:] * (1 - done[:-1, None])

    inputs = ROWS, np.zeros(3, np.int32)
    for port in (advantages, lambda x, done: x[:-1] + 0.9 * x[1:]):
        report = check(advantages, port, inputs, only="power")
        assert "mask of what is left out forgotten" in report["power"].note.partition("not: ")[2]


def test_a_mask_that_is_false_somewhere_has_power():
    for mask in (MASK, MASK.astype(np.int32)):
        report = check(lambda x, m: x * x * m, lambda x, m: x * x * m, (ROWS, mask), only="power")
        assert report["power"].verdict == "passed"


def test_a_port_that_raises_for_other_numbers_fails():
    def strict(w, i):
        return w[i] if i.sum() == 12 else 1 / 0

    report = check(lambda w, i: w[i], strict, RIGHT["embedding"][2], only="integers")
    assert report["integers"].verdict == "failed"
    assert "ZeroDivisionError" in report["integers"].note


def special_of(numbers):
    case = make_case(torchp3.as_operator(lambda x, i: x), jaxp3.as_operator(lambda x, i: x), (LINE, numbers))
    return {variation.place.special: variation.inputs[1] for variation in variations(case)}


def test_what_is_sorted_stays_so_and_a_permutation_stays_one():
    for numbers in special_of(np.array([0, 2, 5, 9])).values():
        assert (np.diff(numbers) >= 0).all()
    assert list(special_of(np.array([2, 0, 1, 3]))) == ["in another order", "with repeats"]
    for special, numbers in special_of(np.array([7, 3, 3, 9])).items():
        assert set(numbers) <= {3, 7, 9}, special


def test_keys_are_left_as_they_are():
    def noisy(key, x):
        return x + 0.0 * key.sum()

    given = (np.array([7, 2**31]), LINE)
    report = parity.check(*[jaxp3.as_operator(noisy)] * 2, given, only="integers", keys=(0,))
    assert report["integers"].verdict == "not applicable"
    report = p3_check(given)
    assert report["integers"].verdict == "not applicable"
    with pytest.raises(InputError, match="are not all arguments"):
        parity.check(*[jaxp3.as_operator(noisy)] * 2, given, keys=(5,))


def p3_check(given):
    named = {"key": given[0], "x": given[1]}
    f = jaxp3.as_operator(lambda key, x: x + 0.0 * key.sum())
    return parity.check(f, f, named, only="integers", keys="key")
