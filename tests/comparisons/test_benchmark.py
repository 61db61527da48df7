"""The benchmark measures what it says: equal answers, positive times, and a ratio that is there."""

import json
import os
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from comparisons.benchmark import benchmark, contenders
from comparisons.benchmark.benchmark import BEGIN, END, KEEP, Race, apart, close_to, page_part, run
from comparisons.benchmark.contenders import timed
from comparisons.pages import seconds
from p3 import TrainingSpec
from p3.fitting.exact import P3
from tests.support.problems import COMPARISONS


def test_a_contender_that_takes_twice_as_long_is_found_to():
    def asleep(units):  # which other processes on the machine lengthen least
        def work():
            time.sleep(0.05 * units)
            return [np.array(1.0)]

        return timed(work)

    race = Race({"once": asleep(1), "twice": asleep(2)}, "once", 1, 9, close_to([np.array(1.0)], 1e-9))
    results = run(race, "planted", show=False)
    once, twice = (np.median(results[name].seconds) for name in ("once", "twice"))
    assert twice / once == pytest.approx(2, rel=0.2)
    assert all(len(result.seconds) == 9 for result in results.values())


def test_the_readmes_table_has_medians_and_their_ratios():
    taken = {"limit": (1.0, 2.0, 30.0), "other": (4.0, 5.0, 60.0)}
    made = {"machine": "m", "date": "d", "torch": "t", "jax": "j", "memory": {"one": 2.004}}
    made["races"] = {"process": {"limit": "limit", "seconds": taken}, "not on the page": None}
    part = page_part(made)
    assert "| limit | 2 s | 1 |\n| other | 5 s | 2.5 |\n" in part
    assert "| one | 2 |" in part
    assert "not on the page" not in part


def test_races_whose_memory_is_kept_have_the_environment_that_keeps_it(tmp_path, monkeypatch):
    environments = {}

    def pretend(function, *arguments, environment=None):
        if function is contenders.peak_memory:
            return 2.0
        environments[arguments[1]] = environment
        return {"limit": "C", "size": 1, "first": {"C": 1.0}, "seconds": {"C": [1.0, 1.0]}}

    monkeypatch.setattr(benchmark, "apart", pretend)
    command = ["--output", str(tmp_path / "benchmark.json"), "--plot", str(tmp_path / "benchmark.png")]
    CliRunner().invoke(benchmark.main, command, catch_exceptions=False)
    assert set(environments) == set(benchmark.races(small=False)) > set(benchmark.PAGE_RACES) - {"process"}
    for name, environment in environments.items():
        assert environment == (KEEP if "memory kept" in name else None)


def test_a_part_is_not_written_over_the_whole():
    finished = CliRunner().invoke(benchmark.main, ["--only", "fit"])
    assert finished.exit_code == 2
    assert "give an --output and a --plot of its own" in finished.output


def test_many_fits_are_timed_a_fit():
    contender = contenders.many_fits(16, 2, 20)["jaxp3.fit_starts"]
    begin = time.perf_counter()
    taken, answer = contender()
    whole = time.perf_counter() - begin
    assert 0.5 * whole < 16 * taken <= whole
    assert np.shape(answer) == (2, 4)


def test_a_wrong_answer_is_not_timed():
    race = Race({"off": timed(lambda: [np.array(1.001)])}, "off", 1, 1, close_to([np.array(1.0)], 1e-4))
    with pytest.raises(AssertionError, match="planted: off gives another answer"):
        run(race, "planted", show=False)


def test_the_operators_are_p3_and_its_derivative():
    x, cotangent = np.linspace(-2, 2, 100), np.linspace(1, 2, 100)
    found = contenders.operators(100)
    assert "2.5 copies" in found
    for name in ("tutorial's operator", "torchp3, eager", "jaxp3, jitted", "jaxp3, jitted, cotangent donated", "C"):
        if name == "C" and "C" not in found:
            continue  # no compiler
        taken, answer = found[name]()
        assert taken > 0
        value, gradient = map(np.asarray, answer)
        np.testing.assert_allclose(value, P3(x), atol=1e-5)
        np.testing.assert_allclose(gradient, cotangent * P3.deriv()(x), atol=1e-4)


@pytest.mark.parametrize("name", ["torchp3, eager", "jaxp3, jitted"])
def test_the_operators_in_half_precision_are_p3_and_its_derivative(name):
    race = benchmark.operator_race(100, 1, "bfloat16")
    _, answer = race.contenders[name]()
    assert all("bfloat16" in str(array.dtype) for array in answer)
    race.check(answer)
    with pytest.raises(AssertionError):
        race.check([1.1 * array for array in answer])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read as Linux tells it")
@pytest.mark.parametrize("name", ["torchp3, eager", "torchp3, compiled", "jaxp3, jitted"])
def test_the_operators_hold_the_value_and_the_gradient_and_nothing_more(name):
    # A twentieth of an array is for what else a process allocates meanwhile.
    assert apart(contenders.peak_memory, name, 10**7) == pytest.approx(2, abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read as Linux tells it")
def test_what_plain_autograd_holds_is_seen():
    assert apart(contenders.peak_memory, "plain autograd", 10**7) == pytest.approx(6, abs=0.05)


def test_a_race_has_an_environment_of_its_own():
    assert apart(os.getenv, "MALLOC_MMAP_THRESHOLD_", environment=KEEP) == KEEP["MALLOC_MMAP_THRESHOLD_"]
    assert apart(os.getenv, "MALLOC_MMAP_THRESHOLD_") is None
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
    assert apart(os.getpid) != os.getpid()


def test_the_c_library_leaves_the_processor_as_it_was():
    contenders.limits()
    assert np.float64(5e-324) * np.float64(1.0) == 5e-324


@pytest.mark.slow
def test_every_race_at_a_small_size(tmp_path):
    output, plot, page = tmp_path / "benchmark.json", tmp_path / "benchmark.png", tmp_path / "speed.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    command = ["--small", "--output", str(output), "--plot", str(plot), "--page", str(page)]
    finished = CliRunner().invoke(benchmark.main, command, catch_exceptions=False)
    assert finished.exit_code == 0
    made = json.loads(output.read_text(encoding="utf-8"))
    for race in made["races"].values():
        assert race["limit"] in race["seconds"]
        for taken in race["seconds"].values():
            assert min(taken) > 0
    assert {name.partition(",")[0] for name in made["races"]} == {"fit", "steps", "operator", "bfloat16", "starts"}
    assert set(made["memory"]) == set(benchmark.MEASURED)
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


def test_the_page_says_what_the_benchmark_printed():
    made = json.loads((COMPARISONS / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    page = COMPARISONS.parent / "docs" / "speed.md"
    assert page_part(made) in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tutorials_script_is_the_tutorials():
    found = contenders.processes()
    _, (b, d) = found["tutorial's script"]()
    assert b == pytest.approx(-2.2085268, rel=1e-6)
    assert d == pytest.approx(0.2554861, rel=1e-6)
    assert TrainingSpec().steps == 2000


@pytest.mark.parametrize(
    ("value", "said"), [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (5e-6, "5 µs"), (2.5e-8, "25 ns"), (120.0, "120 s")]
)
def test_seconds_for_people(value, said):
    assert seconds(value) == said
