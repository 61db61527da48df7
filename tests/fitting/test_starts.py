"""Many fits at once: each is the fit from its own start, the same in both frameworks, in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest

import p3.fitting.starts
from p3 import DivergenceError, InputError, TrainingSpec
from p3.backends import BACKENDS, load
from p3.fitting.data import make_points
from p3.fitting.exact import P3
from p3.fitting.starts import StartsResult, random_starts
from tests.support.commands import QUICK, SCRIPTS, call, refused
from tests.support.marker import with_and_without_marker
from tests.support.optimizers import RULES, SCHEDULES, SOME_COMPILED
from tests.support.problems import PROBLEMS

# One fit alone sums in another order than many at once: 30 steps in float64 take them apart by 1e-14 at most.
APART = 1e-12
FEW = PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 30, "log_every": 7})


def assert_each_is_its_own_fit(backend, spec, count=5, spread=0.1):
    starts = random_starts(spec, count, spread)
    many = load(backend).fit_starts(spec, starts)
    assert many.compiled == spec.jit
    for start, coefficients, loss in zip(starts, many.coefficients, many.losses, strict=True):
        alone = load(backend).fit(spec.replace({"start": dict(zip("abcd", start.tolist(), strict=True))}))
        np.testing.assert_allclose(coefficients, list(alone.coefficients.values()), rtol=APART)
        a, b, c, d = coefficients
        x, y = make_points(spec)
        assert loss == pytest.approx(np.sum((a + b * P3(c + d * x) - y) ** 2), rel=1e-12)
    assert len(set(many.losses)) == count


SOME = ["adam, weight decay, clipped norm"]


FEW_OR_MANY = pytest.mark.parametrize(("count", "steps"), [(2, 10), pytest.param(5, 30, marks=pytest.mark.slow)])


@FEW_OR_MANY
@pytest.mark.parametrize("rule", [pytest.param(rule, marks=[] if rule in SOME else pytest.mark.slow) for rule in RULES])
def test_each_is_the_fit_from_its_start(backend, rule, count, steps):
    assert_each_is_its_own_fit(backend, FEW.replace({"optimizer": RULES[rule], "jit": False, "steps": steps}), count)


@pytest.mark.slow
@pytest.mark.parametrize("rule", SOME_COMPILED)
def test_each_is_the_fit_from_its_start_compiled(backend, rule):
    assert_each_is_its_own_fit(backend, FEW.replace({"optimizer": RULES[rule]}))


@FEW_OR_MANY
def test_schedules_and_batches_are_the_same_for_each(backend, count, steps):
    changes = {"schedule": SCHEDULES["warm_restarts"], "batch_size": 128, "seed": 3, "jit": False, "steps": steps + 5}
    assert_each_is_its_own_fit(backend, FEW.replace(changes), count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
def test_chunks_are_as_good_as_one(backend, count, monkeypatch):
    starts = random_starts(FEW, count, 0.1)
    whole = load(backend).fit_starts(FEW, starts)
    seen = []
    monkeypatch.setattr(p3.fitting.starts, "CHUNK", 3 * FEW.data.points)  # 2 fits, a power of two
    chunked = load(backend).fit_starts(FEW, starts, lambda done, least: seen.append((done, least)))
    np.testing.assert_allclose(chunked.coefficients, whole.coefficients, rtol=APART)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == count
    assert seen[0][1] == np.inf
    if count == 7:  # chunks of 2, 2, 2 and 1
        assert seen[-1][1] == chunked.losses[:6].min()
        assert {done for done, _ in seen} >= {2, 4, 6, 7}


@pytest.mark.parametrize("jit", [pytest.param(True, marks=pytest.mark.slow), False], ids=["compiled", "eager"])
def test_the_hand_written_rule_is_what_many_fits_use(backend, jit):
    # The gradients of c and d pass through the rule; those of a and b do not.
    spec = FEW.replace({"steps": 1, "jit": jit})
    starts = random_starts(spec, 3, 0.1)
    true, marked = with_and_without_marker(
        backend, 4, lambda: load(backend).fit_starts(spec, starts).coefficients - starts
    )
    np.testing.assert_allclose(marked, true * [1, 1, 4, 4], rtol=1e-9)


@pytest.mark.slow
def test_what_diverges_is_what_raises_alone(backend, dtype):
    spec = TrainingSpec(dtype=dtype, steps=60)
    starts = random_starts(spec, 40)
    many = load(backend).fit_starts(spec, starts)
    assert 0 < many.diverged.sum() < 40
    assert np.array_equal(many.diverged, many.losses == np.inf)
    for start, diverged in zip(starts[:8], many.diverged, strict=False):
        alone = spec.replace({"start": dict(zip("abcd", start.tolist(), strict=True))})
        if diverged:
            with pytest.raises(DivergenceError):
                load(backend).fit(alone)
        else:
            load(backend).fit(alone)


def test_an_update_that_diverges_counts(backend):
    spec = TrainingSpec(jit=False, steps=1).replace({"optimizer": {"learning_rate": 1e38}})
    assert load(backend).fit_starts(spec, random_starts(spec, 3)).best is None


def test_a_loss_that_was_infinite_counts(backend):
    # The square of the residual overflows and its gradient does not; clipped, it leaves all coefficients finite.
    spec = TrainingSpec(jit=False, steps=2).replace({"optimizer": {"clip_value": 1.0}})
    many = load(backend).fit_starts(spec, np.array([[0.0, -1.0, 0.0, 0.3], [1e19, -1.0, 0.0, 0.3]]))
    assert np.isfinite(many.coefficients).all()
    assert many.diverged.tolist() == [False, True]


@pytest.fixture(scope="module")
def both():
    spec = TrainingSpec(dtype="float64", log_every=2000)
    return [load(backend).fit_starts(spec, random_starts(spec, 100)) for backend in BACKENDS]


def test_both_frameworks_have_the_same_fits():
    spec = TrainingSpec(dtype="float64", jit=False, steps=60)
    a, b = (load(backend).fit_starts(spec, random_starts(spec, 20)) for backend in BACKENDS)
    assert np.array_equal(a.starts, b.starts)
    assert np.array_equal(a.diverged, b.diverged)
    assert 0 < a.diverged.sum() < 20
    assert a.best == b.best
    np.testing.assert_allclose(a.losses, b.losses, rtol=APART)


@pytest.mark.slow
def test_both_frameworks_come_to_the_same_minima(both):
    a, b = both
    assert np.array_equal(a.starts, b.starts)
    assert np.array_equal(a.diverged, b.diverged)
    assert a.best == b.best
    assert np.array_equal(a.converged, b.converged)
    # Elsewhere some fits jump to and fro for ever, since their steps are too long, and rounding decides where to.
    np.testing.assert_allclose(a.coefficients[a.converged], b.coefficients[a.converged], rtol=0, atol=1e-14)


@pytest.mark.slow
def test_minima_are_told_apart(both):
    result, _ = both
    assert result.converged[result.best]
    assert result.losses[result.converged].max() < 12  # the best has 8.8, and the next minimum 405
    assert result.losses[~result.converged].min() > 12
    summary = str(result)
    counts = [int(word) for word in summary.splitlines()[0].split() if word.isdigit()]
    assert counts == [100, result.converged.sum(), 100 - sum(result.converged | result.diverged), result.diverged.sum()]
    assert summary.splitlines()[2] == "Result: y = {} + {} * P3({} + {} x)".format(*result.coefficients[result.best])


def test_a_result_survives_its_file(backend, tmp_path):
    spec = TrainingSpec(jit=False, steps=60)
    result = load(backend).fit_starts(spec, random_starts(spec, 20))
    assert 0 < result.diverged.sum() < 20
    result.save(tmp_path / "many.json")
    loaded = StartsResult.load(tmp_path / "many.json")
    assert loaded.spec == result.spec
    for name in ("starts", "coefficients", "losses"):
        assert np.array_equal(getattr(loaded, name), getattr(result, name), equal_nan=True)
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(InputError, match=r"fit\.json: is not a saved fit of many starts: backend is missing"):
        StartsResult.load(tmp_path / "fit.json")


def test_starts_come_from_the_seed():
    spec = PROBLEMS["asymmetric"]
    starts = random_starts(spec, 1000, 0.5)
    assert np.array_equal(starts, random_starts(spec, 1000, 0.5))
    assert np.array_equal(starts[:10], random_starts(spec, 10, 0.5))
    assert not np.array_equal(starts, random_starts(spec.replace({"seed": 1}), 1000, 0.5))
    off = starts - list(spec.start.model_dump().values())
    assert 0.49 < off.max() <= 0.5
    assert -0.5 <= off.min() < -0.49
    assert np.abs(off.mean(axis=0)).max() < 0.04


# --- the command


@pytest.mark.parametrize("command", ["torchp3", "jaxp3"])
def test_the_command_prints_a_summary_and_draws_the_basin(command, tmp_path):
    finished = call(
        command, *QUICK, "--starts", "30", "--basin", tmp_path / "b.png", "--output", tmp_path / "many.json"
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    counts, best, result = finished.stdout.splitlines()
    assert counts.startswith("30 starts: ")
    assert best.startswith("Best: loss ")
    assert result.startswith("Result: y = ")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    saved = StartsResult.load(tmp_path / "many.json")
    assert str(saved) == finished.stdout.rstrip()
    assert np.array_equal(saved.starts, random_starts(saved.spec, 30))


def test_the_command_when_all_diverge(tmp_path):
    picture = tmp_path / "basin.svg"
    finished = call("jaxp3", *QUICK, "--starts", "3", "--optimizer.learning-rate", "1e9", "--basin", picture)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert (
        finished.stdout == "3 starts: all diverged; try a learning rate below 1e+09, or starts nearer to the answer\n"
    )
    assert picture.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--starts", "0"], "Invalid value for '--starts': 0 is not in the range 1<=x<=1000000000000"),
        (["--starts", "5", "--spread", "-1"], "Invalid value for '--spread': -1.0 is not in the range x>=0"),
        (["--starts", "5", "--spread", "inf"], "--spread inf: it must be finite"),
        (["--starts", "5", "--spread", "nan"], "--spread nan: it must be finite"),
        (["--spread", "2"], "--spread and --basin are of many fits; say how many with --starts"),
        (["--basin", "basin.png"], "--spread and --basin are of many fits; say how many with --starts"),
        (["--starts", "5", "--basin", "basin.xyz"], "--basin basin.xyz: it must end in .png, .svg or .pdf"),
        (["--starts", "5", "--checkpoint", "run"], "--starts fits many at once, which are not saved"),
        (["--starts", "5", "--resume"], "--starts fits many at once, which are not saved"),
        (["--starts", "1000000000000"], "not enough memory"),
    ],
)
def test_bad_input_gets_one_line(arguments, message, tmp_path):
    refused(call("jaxp3", *arguments, cwd=tmp_path), message)
    assert not list(tmp_path.iterdir())


# --- size

# The most that the process ever held, in bytes, after few starts and after ten times as many.
PROGRAM = """
import sys
from p3 import TrainingSpec
from p3.backends import load
from p3.fitting.starts import random_starts

spec = TrainingSpec(steps=3)
for count in (2000, 20_000):
    load(sys.argv[1]).fit_starts(spec, random_starts(spec, count))
    print(1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_starts(backend):
    finished = subprocess.run([sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True, check=True)
    few, many = map(int, finished.stdout.split())
    assert many - few < 32e6  # an array of all starts by all points has 160 MB


@pytest.mark.slow
@pytest.mark.parametrize("command", ["torchp3", "jaxp3"])
def test_ten_thousand_starts_of_the_tutorials_problem(command):
    finished = subprocess.run([SCRIPTS / command, "--starts", "10000"], capture_output=True, text=True, check=True)
    # Float32's rounding decides of some starts whether they diverge.
    counts = [int(word) for word in finished.stdout.splitlines()[0].split() if word.isdigit()]
    np.testing.assert_allclose(counts, [10000, 2061, 2142, 5797], atol=5)
    assert float(finished.stdout.split("loss ")[1].split(",")[0]) == pytest.approx(8.817973, rel=1e-6)
