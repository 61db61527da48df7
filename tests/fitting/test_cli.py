"""The commands: each once as a user runs it, in a process of its own, and what they say in this process."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest

import p3
from p3 import FitResult, TrainingSpec
from tests.support.commands import QUICK, SCRIPTS, call, refused, run
from tests.support.problems import COMPARISONS

MODULE = (sys.executable, "-m")


@pytest.mark.parametrize(
    "how",
    [
        ("torchp3",),
        (*MODULE, "jaxp3"),
        pytest.param(("jaxp3",), marks=pytest.mark.slow),
        pytest.param((*MODULE, "torchp3"), marks=pytest.mark.slow),
    ],
    ids=lambda how: " ".join(how).replace(sys.executable, "python"),
)
def test_a_fit_prints_the_tutorials_lines(how):
    finished = run(*how, *QUICK)
    assert finished.returncode == 0
    assert finished.stderr == ""
    *rows, result = finished.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["7", "15", "19"]
    assert all(re.fullmatch(r"\d+ \d+\.\d+", row) for row in rows)
    assert re.fullmatch(r"Result: y = \S+ \+ \S+ \* P3\(\S+ \+ \S+ x\)", result)


@pytest.mark.parametrize("command", [pytest.param("torchp3", marks=pytest.mark.slow), "jaxp3"])
def test_the_tutorials_table_from_the_command(command):
    finished = call(command)
    assert finished.returncode == 0
    rows = [row.split() for row in finished.stdout.splitlines()[:-1]]
    assert [int(step) for step, _ in rows] == list(range(99, 2000, 100))
    assert float(rows[0][1]) == pytest.approx(209.95834350585938, rel=2e-6)
    assert float(rows[-1][1]) == pytest.approx(8.943639755249023, rel=2e-6)


def test_flags_override_the_file(tmp_path):
    output = tmp_path / "result.json"
    finished = call(
        "jaxp3", COMPARISONS / "asymmetric.toml",
        "--steps", "3", "--data.points=7", "--optimizer.learning-rate", "1e-3", "--start.a", "-0.5",
        "--data.target", "cos", "--dtype", "float64", "--device", "cpu", "--no-jit",
        "--output", output,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert FitResult.load(output).spec == TrainingSpec.from_toml(COMPARISONS / "asymmetric.toml").replace(
        {
            "steps": 3,
            "data": {"points": 7, "target": "cos"},
            "optimizer": {"learning_rate": 1e-3},
            "start": {"a": -0.5},
            "dtype": "float64",
            "device": "cpu",
            "jit": False,
        }
    )


@pytest.mark.parametrize("command", ["p3", "torchp3", "jaxp3"])
def test_each_command_says_its_version(command):
    for how in ((command,), (*MODULE, command)):
        finished = run(*how, "--version")
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"{command} {p3.__version__}\n", "")
    assert p3.__version__ == metadata.version("p3")


def test_every_field_has_a_flag():
    text = call("torchp3", "--help").stdout
    for table, fields in TrainingSpec().model_dump().items():
        for field in fields if isinstance(fields, dict) else [None]:
            flag = "--" + (f"{table}.{field}" if field else table).replace("_", "-")
            assert f"{flag} " in text
    other = call("jaxp3", "--help").stdout
    assert other.replace("with JAX", "with PyTorch").replace("jaxp3", "torchp3").split() == text.split()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for command in ("torchp3", "jaxp3"):
        assert call(command, *QUICK, "--output", folder / f"{command}.json").returncode == 0
    return folder


def test_compare_takes_saved_results(saved):
    finished = run("p3", "compare", "torchp3.json", "jaxp3.json", cwd=saved)
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert "agree: " in finished.stdout


def test_compare_fits_in_one_process():
    finished = call("p3", "compare", "--devices", "2")
    refused(finished, "devices = 2, and this fits in one process; fit with torchp3 and jaxp3")


def test_too_many_devices_for_one_process():
    finished = call("jaxp3", "--devices", "2049")
    refused(finished, "2049 devices in one process, and JAX takes 2048 at most; start more processes")


def test_compare_fails_when_the_results_differ(saved, tmp_path):
    result = FitResult.load(saved / "jaxp3.json")
    losses = result.losses.copy()
    losses[12] *= 1.001
    result.model_copy(update={"losses": losses}).save(tmp_path / "off.json")
    finished = call("p3", "compare", saved / "torchp3.json", tmp_path / "off.json")
    assert finished.returncode == 1
    assert "differ: not reproduced: at step 12 JAX's loss is " in " ".join(finished.stdout.split())


def test_compare_fits_with_both_and_draws(tmp_path):
    finished = call("p3", "compare", COMPARISONS / "asymmetric.toml", *QUICK, "--plot", tmp_path / "fit.png")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "agree: " in finished.stdout
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


BAD_COMMANDS = [
    (["--steps", "0"], "steps = 0: it must be greater than or equal to 1"),
    (["--steps", "-5"], "steps = -5: it must be greater than or equal to 1"),
    (["--steps", "many"], "Invalid value for '--steps': 'many' is not a valid integer"),
    (["--optimizer.learning-rate", "nan"], "optimizer.learning_rate = nan: it must be a finite number"),
    (["--optimizer.learning-rate", "fast"], "'fast' is not a valid float"),
    (["--start.a", "inf"], "start.a = inf: it must be a finite number"),
    (["--data.low", "5"], "data: low = 5.0 must be less than high = 3.141592653589793"),
    (["--data.target", "tan"], "'tan' is not one of 'sin', 'cos', 'exp', 'tanh', 'arctan', 'cbrt'"),
    (["--dtype", "float8"], "'float8' is not one of 'float32', 'float64'"),
    (["--step", "5"], "No such option"),
    (["nowhere.toml"], "nowhere.toml: cannot be read: No such file or directory"),
    (["--output", "/nowhere/result.json"], "/nowhere/result.json: cannot be written: No such file or directory"),
    ([""], ": cannot be read: "),
    (["two\nlines.toml"], "two lines.toml: cannot be read: No such file or directory"),
    (["--output", "/"], "--output /: cannot be written: Is a directory"),
    (["--data.target", "exp", "--data.high", "1e3"], "exp over [-3.141592653589793, 1000.0] is not finite in float32"),
    (["--data.points", "1000000000000"], "not enough memory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_COMMANDS, ids=[" ".join(words) for words, _ in BAD_COMMANDS])
def test_bad_input_gets_one_line(arguments, message):
    refused(call("jaxp3", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.toml", "b.json", "c.json"], "3 files were given; give one specification, or two results, or none"),
        (["torchp3.json", "jaxp3.json", "--steps", "3"], "a saved result keeps its specification"),
        (["torchp3.json"], "torchp3.json: is not TOML"),
        (["torchp3.json", "nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
        (["torchp3.json", "jaxp3.json", "--plot", "fit.xyz"], "--plot fit.xyz: it must end in .png, .svg or .pdf"),
    ],
)
def test_bad_comparisons_get_one_line(arguments, message, saved):
    refused(call("p3", "compare", *arguments, cwd=saved), message)


def test_an_unwritable_output_is_found_before_the_fit(tmp_path):
    begin = time.perf_counter()
    refused(run("jaxp3", "--steps", str(10**9), "--output", tmp_path / "no" / "result.json"), "cannot be written")
    assert time.perf_counter() - begin < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["torchp3", "jaxp3"])
@pytest.mark.parametrize("jit", [pytest.param("--jit", marks=pytest.mark.slow), "--no-jit"])
def test_a_fit_that_diverges_stops_there(command, jit):
    finished = call(command, "--optimizer.learning-rate", "1e-2", jit)
    refused(finished, "the fit diverged at step ", code=1)
    assert "nan" not in finished.stdout.lower()


NOT_INSTALLED = pytest.mark.parametrize(
    ("module", "command", "hint"),
    [
        ("torch", "torchp3", 'torchp3 needs torch, which is not installed; install it with: pip install "torch'),
        ("jax", "jaxp3", 'jaxp3 needs jax, which is not installed; install it with: pip install "jax'),
        ("optax", "jaxp3", 'jaxp3 needs optax, which is not installed; install it with: pip install "jax'),
        ("torch", "p3 compare", "torchp3 needs torch, which is not installed"),
        ("jax", "p3 compare", "jaxp3 needs jax, which is not installed"),
    ],
)


@NOT_INSTALLED
def test_a_framework_that_is_not_installed(module, command, hint, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refused(call(*command.split()), hint)


@pytest.mark.slow
@NOT_INSTALLED
@pytest.mark.parametrize("as_module", [False, True], ids=["script", "python -m"])
def test_a_framework_that_is_not_installed_in_a_new_process(module, command, hint, as_module):
    name, *arguments = command.split()
    start = (
        f"import runpy; runpy.run_module('{name}', run_name='__main__')"
        if as_module
        else f"import p3.cli; p3.cli.{name}()"
    )
    program = f"import sys; sys.modules['{module}'] = None; sys.argv = {[name, *arguments]}; {start}"
    refused(run(sys.executable, "-c", program), hint)


@pytest.mark.parametrize(
    ("start", "command", "variable", "value", "reason"),
    [
        pytest.param(
            *(run, "torchp3", "CXX", "no-such-compiler", "No working C++ compiler found"),
            marks=pytest.mark.slow,  # test_program.py has the same by default
        ),
        (call, "torchp3", "TORCH_COMPILE_DISABLE", "1", "TORCH_COMPILE_DISABLE is set"),
        pytest.param(
            *(run, "torchp3", "TORCH_COMPILE_DISABLE", "1", "TORCH_COMPILE_DISABLE is set"), marks=pytest.mark.slow
        ),
        (run, "jaxp3", "JAX_DISABLE_JIT", "1", "jax_disable_jit is set"),  # which JAX reads when it is imported
    ],
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_so_in_one_line(
    start, command, variable, value, reason, tmp_path
):
    environment = {variable: value, "TORCHP3_CACHE_DIR": str(tmp_path / "cache")}
    finished = start(command, "--steps", "20", "--output", tmp_path / "result.json", env=environment)
    refused(finished, f"{command}: jit = true, but the loop runs eagerly: {reason}", code=0)
    assert finished.stdout.splitlines()[-1].startswith("Result: ")
    assert not FitResult.load(tmp_path / "result.json").compiled


def test_progress_shows_on_a_terminal():
    controller, terminal = pty.openpty()
    process = subprocess.Popen([SCRIPTS / "jaxp3", *QUICK], stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(controller, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert b"JAX: loss" in shown
    assert b"20/20" in shown
    assert b"Result: y = " in shown


def test_a_reader_that_leaves_is_no_error():
    command = f"'{SCRIPTS / 'jaxp3'}' --steps 3000 --log-every 1 --no-jit --data.points 2 | head -n 1"
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("0 ")
    assert finished.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["", "2"], ids=["output", "error"])
def test_a_closed_stream_is_no_error(closed):
    command = f"'{SCRIPTS / 'jaxp3'}' {' '.join(QUICK)} {closed}>&-"
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert finished.stderr == ""
    assert ("Result: y = " in finished.stdout) == (closed == "2")


def test_a_command_without_a_subcommand_shows_them():
    finished = run(SCRIPTS / "p3")
    assert finished.returncode == 2
    assert "\n  compare " in finished.stderr


def test_an_interrupt_ends_with_130():
    # A shell starts what it runs in the background with the signal ignored, and so would this start the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [SCRIPTS / "jaxp3", "--steps", "1000000", "--log-every", "1", "--no-jit"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout.readline().startswith("0 ")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "jaxp3: interrupted"
