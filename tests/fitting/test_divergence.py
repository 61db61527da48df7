"""Bugs planted in one framework's training are found at their first step, as what they are; rounding is called that."""

import numpy as np
import pytest

import jaxp3
import jaxp3.fitting.model
import jaxp3.fitting.train
import torchp3
import torchp3.fitting.model
import torchp3.fitting.train
from p3 import compare
from p3.backends import load
from p3.fitting.divergence import ORDER, find, first_divergence, observe
from p3.fitting.optimizers import Adamw
from tests.support.problems import PROBLEMS, fitted

TRAIN = {"torch": torchp3.fitting.train, "jax": jaxp3.fitting.train}
MODEL = {"torch": torchp3.fitting.model, "jax": jaxp3.fitting.model}


def asymmetric(**changes):
    return PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 150, "log_every": 40, "jit": False, **changes})


SGD = asymmetric()
MOMENTUM = asymmetric(optimizer={"momentum": 0.9, "nesterov": True})
ADAM = asymmetric(optimizer={"name": "adam", "learning_rate": 0.01, "weight_decay": 0.1})
EXPONENTIAL = asymmetric(schedule={"name": "exponential"})
CLIPPED = asymmetric(optimizer={"clip_norm": 300.0})
BATCHES = asymmetric(batch_size=100)


def with_optimizer(**changes):
    """The rule with other hyperparameters."""

    def plant(patch, train, model):
        update = train.update
        patch(train, "update", lambda optimizer, *args: update(optimizer.model_copy(update=changes), *args))

    return plant


def rule_at(step, change):
    """The rule's gradients or state changed, at one step or from it on: change(gradients, state, count)."""

    def plant(patch, train, model):
        update = train.update

        def changed(optimizer, coefficients, gradients, state, count, learning_rate):
            if int(count) >= step:
                gradients, state, count = change(gradients, state, count)
            return update(optimizer, coefficients, gradients, state, count, learning_rate)

        patch(train, "update", changed)

    return plant


def decoupled(patch, train, model):
    update = train.update

    def changed(optimizer, *args):
        return update(Adamw(learning_rate=optimizer.learning_rate, weight_decay=optimizer.weight_decay), *args)

    patch(train, "update", changed)


def rates(change):
    def plant(patch, train, model):
        learning_rates = train.learning_rates
        patch(train, "learning_rates", lambda spec: change(learning_rates(spec)))

    return plant


def loss_of(change):
    def plant(patch, train, model):
        loss = train.loss
        patch(train, "loss", lambda *given: change(loss(*given)))

    return plant


def points(change):
    def plant(patch, train, model):
        make_shard = train.make_shard
        patch(train, "make_shard", lambda *of: dict(zip("xy", change(*make_shard(*of).values()), strict=True)))

    return plant


def shuffled(patch, train, model):
    seen = train.seen

    def changed(shard, told):
        other = {**told, "batch": told["batch"] if told["count"] < 37 else (told["batch"] + 1) % len(shard["x"])}
        return seen(shard, other)

    patch(train, "seen", changed)


def mismatched_pairs(patch, train, model):
    """The x of one batch with the y of the next, from the first batch on."""
    seen = train.seen

    def changed(shard, told):
        x, _, own = seen(shard, told)
        return x, seen(shard, {**told, "batch": told["batch"] - 1})[1], own

    patch(train, "seen", changed)


def gradients_of(change, first=0):
    def plant(patch, train, model):
        loss_and_gradients = train.loss_and_gradients
        calls = []

        def changed(*given):
            value, gradients = loss_and_gradients(*given)
            calls.append(1)
            # The first call is thrown away: libraries load in it.
            return value, change(gradients) if len(calls) - 2 >= first else gradients

        patch(train, "loss_and_gradients", changed)

    return plant


def other_polynomial(patch, train, model):
    patch(model, "legendre_p3", lambda x: 0.5 * (5 * x * x * x - 3.0000001 * x))


def rounded_between_pieces(patch, train, model):
    eager_piece = train.eager_piece

    def changed(*args):
        (coefficients, state), record = eager_piece(*args)
        return ({name: 0 * value + float(np.float32(value)) for name, value in coefficients.items()}, state), record

    patch(train, "eager_piece", changed)


def starts_off(patch, train, model):
    place_coefficients = train.place_coefficients

    def changed(spec, coefficients):
        placed = place_coefficients(spec, coefficients)
        return {**placed, "c": placed["c"] + 1e-6}

    patch(train, "place_coefficients", changed)


def forgets_momentum(gradients, state, count):
    if count == 50:
        state = {"momentum": {name: 0 * value for name, value in state["momentum"].items()}}
    return gradients, state, count


def in_float32(x):
    return x.astype(np.float32).astype(float)


def one_twice(x):
    return np.append(x[:-1], x[-2])


# The specification, the bug, the step and the quantity where it first shows, and the path.
BUGS = {
    "nesterov left out": (MOMENTUM, with_optimizer(nesterov=False), 0, "update", None),
    "momentum 0.9001": (MOMENTUM, with_optimizer(momentum=0.9001), 0, "update", None),
    "momentum forgotten at step 50": (MOMENTUM, rule_at(50, forgets_momentum), 50, "update", None),
    "epsilon squared": (ADAM, with_optimizer(epsilon=1e-16), 0, "update", None),
    "beta2 0.9999": (ADAM, with_optimizer(beta2=0.9999), 1, "update", None),
    "bias not corrected": (ADAM, rule_at(0, lambda g, s, count: (g, s, count + 10**6)), 0, "update", None),
    "decoupled decay for an L2 penalty": (ADAM, decoupled, 0, "update", None),
    # Adam's first update is learning_rate · sign of the gradient, with a decay in it or not.
    "weight decay left out": (ADAM, with_optimizer(weight_decay=0.0), 1, "update", None),
    "clipping left out": (CLIPPED, with_optimizer(clip_norm=None), 0, "update", None),
    "schedule a step late": (EXPONENTIAL, rates(lambda r: np.concatenate([r[:1], r[:-1]])), 1, "learning rate", None),
    "schedule in float32": (EXPONENTIAL, rates(in_float32), 0, "learning rate", None),
    "learning rate × 1.0001": (SGD, rates(lambda r: 1.0001 * r), 0, "learning rate", None),
    "mean for sum": (SGD, loss_of(lambda loss: loss / SGD.data.points), 0, "loss", None),
    "half the loss": (SGD, loss_of(lambda loss: loss / 2), 0, "loss", None),
    "float32 data": (SGD, points(lambda x, y: (x, in_float32(y))), 0, "data", None),
    "one point twice": (SGD, points(lambda x, y: (one_twice(x), one_twice(y))), 0, "data", None),
    "another batch from step 37 on": (BATCHES, shuffled, 37, "data", None),
    "x and y of two batches": (BATCHES, mismatched_pairs, 0, "data", None),
    "another polynomial": (SGD, other_polynomial, 0, "prediction", None),
    "a's gradient twice from step 100 on": (
        SGD,
        gradients_of(lambda g: {**g, "a": 2 * g["a"]}, first=100),
        100,
        "gradient",
        "a",
    ),
    "d's gradient's sign": (SGD, gradients_of(lambda g: {**g, "d": -g["d"]}), 0, "gradient", "d"),
    "b's gradient × (1 + 1e-9)": (SGD, gradients_of(lambda g: {**g, "b": (1 + 1e-9) * g["b"]}), 0, "gradient", "b"),
    "coefficients rounded between pieces": (SGD, rounded_between_pieces, 39, "coefficient", None),
    "another start": (SGD, starts_off, 0, "coefficient", "c"),
    "the last update lost": (SGD.replace({"steps": 40}), rounded_between_pieces, 39, "coefficient", None),
}


# Each bug in one framework by default, some steps beyond its first; and among the slow tests in both, to the end.
@pytest.mark.parametrize(
    ("backend", "beyond", "bug"),
    [
        *((list(TRAIN)[number % 2], 10, bug) for number, bug in enumerate(BUGS)),
        *(pytest.param(backend, 150, bug, marks=pytest.mark.slow) for bug in BUGS for backend in TRAIN),
    ],
)
def test_a_bug_is_found_at_its_first_step_as_what_it_is(backend, beyond, bug, monkeypatch):
    spec, plant, step, quantity, path = BUGS[bug]
    spec = spec.replace({"steps": min(spec.steps, step + beyond)})
    plant(monkeypatch.setattr, TRAIN[backend], MODEL[backend])
    # Of the framework without the bug one fit does for all bugs.
    sides = (load(each).fit(spec) if each == backend else fitted(each, spec) for each in TRAIN)
    comparison = compare(*sides)
    found = comparison.first_divergence
    assert not comparison.ok
    assert (found.step, found.quantity, found.kind) == (step, quantity, "semantic")
    assert path in (None, found.path)
    if quantity not in ("learning rate", "update"):  # of which it is known only that they differ
        assert found.side == {"torch": "PyTorch", "jax": "JAX"}[backend]
    assert (found.check, found.mode) == ("training", "eager")
    assert found.epsilons > found.tolerance
    assert found.explanation
    assert str(found) in comparison.verdict


def test_the_paths_are_those_of_coefficients_and_of_elements():
    result = torchp3.fit(SGD.replace({"steps": 3}))
    data, prediction = observe(result, 0)
    assert (data.paths[3], data.paths[-1], prediction.paths[3]) == (
        "x[3]",
        f"y[{SGD.data.points - 1}]",
        "prediction[3]",
    )


def test_there_are_as_many_bugs_as_should_be_of_every_quantity():
    assert len(BUGS) >= 15
    assert {quantity for _, _, _, quantity, _ in BUGS.values()} == set(ORDER)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "adam", "learning_rate": 0.01}},
        {"optimizer": {"name": "rmsprop"}},
        {"optimizer": {"name": "adagrad", "learning_rate": 0.01}},
        {"batch_size": 100, "optimizer": {"momentum": 0.9, "learning_rate": 1e-6}},
        {"schedule": {"name": "one_cycle"}, "optimizer": {"name": "adadelta", "learning_rate": 0.1}},
    ],
)
@pytest.mark.parametrize(
    ("problem", "dtype", "steps"),
    [
        ("asymmetric", "float32", 50),
        *(
            pytest.param(problem, dtype, 150, marks=pytest.mark.slow)
            for problem in PROBLEMS
            for dtype in ("float32", "float64")
        ),
    ],
)
def test_what_is_not_changed_is_rounding(problem, dtype, steps, changes):
    spec = PROBLEMS[problem].replace({"dtype": dtype, "steps": steps, "jit": False, **changes})
    a, b = torchp3.fit(spec), jaxp3.fit(spec)
    assert find(a, b) is None
    assert compare(a, b).ok


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1, "dtype": "float32", "optimizer": {"name": "adam", "learning_rate": 0.05}},
        pytest.param(
            {
                "batch_size": 1,
                "dtype": "float64",
                "optimizer": {"name": "adadelta", "decay": 0.0, "epsilon": 1.0, "learning_rate": 1.0},
            },
            marks=pytest.mark.slow,
        ),
        # As years are: z = c + d·x is a small difference of large numbers.
        {
            "data": {"points": 200, "low": 1900.0, "high": 2020.0},
            "start": {"c": -32.6667, "d": 1 / 60},
            "optimizer": {"name": "adam", "learning_rate": 0.01},
        },
        pytest.param(
            {
                "data": {"points": 200, "low": 99900.0, "high": 100020.0},
                "start": {"c": -1666.0, "d": 1 / 60},
                "optimizer": {"name": "adam", "learning_rate": 0.01},
            },
            marks=pytest.mark.slow,
        ),
        # PyTorch's cosine is a recursion, whose roundings add up.
        {
            "dtype": "float64",
            "optimizer": {"name": "adam", "learning_rate": 0.05},
            "schedule": {"name": "cosine", "final_factor": 0.1, "decay_steps": 2000},
        },
        # The variance of gradients that are nearly the same is less than its rounding, and may be negative.
        {
            "dtype": "float64",
            "optimizer": {"name": "rmsprop", "decay": 0.9, "centered": True, "learning_rate": 1e-9},
        },
    ],
)
@pytest.mark.parametrize("steps", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_where_rounding_is_more_it_is_rounding(steps, changes):
    problem = PROBLEMS["tutorial" if "data" in changes else "asymmetric"]
    spec = problem.replace({"steps": steps, "log_every": 200, "jit": False, **changes})
    assert find(torchp3.fit(spec), jaxp3.fit(spec)) is None


def test_rounding_that_a_descent_amplifies_is_not_taken_for_a_bug():
    # a's true gradient is 0, and Adam makes full steps of its noise.
    spec = PROBLEMS["tutorial"].replace(
        {"steps": 300, "jit": False, "optimizer": {"name": "adam", "learning_rate": 0.05}}
    )
    comparison = compare(torchp3.fit(spec), jaxp3.fit(spec))
    assert not comparison.within_tolerance
    assert comparison.ok
    assert comparison.verdict.startswith("agree step by step: before step ")
    assert "by rounding alone" in comparison.verdict


FEW_STEPS_OR_ALL = pytest.mark.parametrize("steps", [10, pytest.param(150, marks=pytest.mark.slow)])


@FEW_STEPS_OR_ALL
def test_a_float32_bug_is_found_again_in_float64(steps, monkeypatch):
    spec = SGD.replace({"dtype": "float32", "steps": steps})
    BUGS["d's gradient's sign"][1](monkeypatch.setattr, torchp3.fitting.train, torchp3.fitting.model)
    result = torchp3.fit(spec)
    found = compare(result, jaxp3.fit(spec)).first_divergence
    assert (found.step, found.quantity, found.kind) == (0, "gradient", "semantic")
    monkeypatch.undo()
    assert compare(result, jaxp3.fit(spec)).first_divergence.kind == "not reproduced"


@FEW_STEPS_OR_ALL
def test_what_is_a_few_tolerances_off_in_float32_alone_is_rounding(steps):
    spec = SGD.replace({"dtype": "float32", "steps": steps})
    a, b = torchp3.fit(spec), jaxp3.fit(spec)
    traces = {name: values.copy() for name, values in a.traces.items()}
    traces["learning_rate"][:3] *= 1 + 10 * np.finfo("float32").eps
    off = a.model_copy(update={"traces": traces})
    found = first_divergence(off, b)
    assert (found.step, found.quantity, found.kind) == (0, "learning rate", "rounding")


def test_what_is_as_many_epsilons_in_either_dtype_is_rounding(monkeypatch):
    learning_rates = torchp3.fitting.train.learning_rates
    monkeypatch.setattr(
        torchp3.fitting.train,
        "learning_rates",
        lambda spec: learning_rates(spec) * (1 + 10 * np.finfo(spec.dtype).eps),
    )
    spec = SGD.replace({"dtype": "float32", "steps": 3})
    found = first_divergence(torchp3.fit(spec), jaxp3.fit(spec))
    assert (found.step, found.quantity, found.kind) == (0, "learning rate", "rounding")


def test_data_must_be_the_same_to_the_last_bit():
    result = torchp3.fit(SGD.replace({"steps": 3}))
    data = next(measured.pair for measured in observe(result, 0) if measured.quantity == "data")
    assert not data.beyond("float64").any()
    assert data._replace(got=np.nextafter(data.got, np.inf)).beyond("float64").all()


@FEW_STEPS_OR_ALL
def test_without_traces_it_says_what_to_do(steps):
    spec = SGD.replace({"trace": False, "steps": steps})
    a = torchp3.fit(spec)
    other = a.model_validate(a.model_dump() | {"losses": 2 * a.losses})
    assert not compare(a, other).ok
    assert compare(a, other).first_divergence is None
    assert compare(a, other).verdict.endswith("fit both in one dtype with trace = true")
