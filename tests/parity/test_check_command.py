"""`p3 check`, called here or run as a user runs it, and the inputs and functions that it takes by name."""

import inspect
import json
import os
import pty
import re
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from shutil import which

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import leaky_relu

import jaxp3
import p3
import torchp3
from p3 import InputError, parity
from p3.cli import p3_command
from p3.commands import check as commands_check
from p3.commands.check import two_devices
from p3.parity.case import Options
from p3.parity.checks.derivatives import text_of
from p3.parity.inputs import load_function, parse_input, parse_keyword
from p3.parity.page import plot_errors
from tests.support.commands import EITHER_WAY, SCRIPTS, call, refused, run
from tests.support.faulty_ports import FAULTY
from tests.support.problems import COMPARISONS

P3 = ["torchp3:legendre_p3", "jaxp3:legendre_p3", "--input", "linspace(-3, 3, 51)"]
EXAMPLE = [f"{COMPARISONS / 'softplus.py'}:{name}" for name in ("Softplus", "softplus")]
EXAMPLE_INPUTS = ["--input", "linspace(-3, 3, 101)", "--input", "1.5"]


@pytest.mark.parametrize(
    ("command", "only"),
    [(call, ["--only", "value", "--only", "vjp"]), pytest.param(run, [], marks=pytest.mark.slow)],
    ids=["here", "in a process"],
)
def test_a_right_port_exits_with_0_and_is_quiet_in_a_pipe(command, only):
    finished = command("p3", "check", *P3, "--no-compiled", *only)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "The port is right" in finished.stdout


@EITHER_WAY
def test_the_readmes_example_is_caught_and_explained(command):
    finished = command("p3", "check", *EXAMPLE, *EXAMPLE_INPUTS, "--only", "value", "--only", "vjp")
    assert finished.returncode == 1
    readme = (COMPARISONS.parent / "README.md").read_text()
    (quoted,) = re.findall(r"```\n(vjp: the port, inputs\[1\].*?)\n```", readme, re.DOTALL)
    assert " ".join(quoted.split()) in " ".join(finished.stdout.split())


@EITHER_WAY
def test_reports(command, tmp_path):
    for name in ("report.json", "report.html"):
        finished = command("p3", "check", *EXAMPLE, *EXAMPLE_INPUTS, "--only", "vjp", "--report", tmp_path / name)
        assert finished.returncode == 1, finished.stderr
    assert json.loads((tmp_path / "report.json").read_text())["checks"][0]["verdict"] == "failed"
    page = (tmp_path / "report.html").read_text()
    assert page.index("First cause: vjp: the port, inputs[1], against finite differences") < page.index("<table")
    assert "<svg" in page
    assert not re.findall(r"""(?:src|href)="(?!#)|url\((?!#)|@import|<script""", page)  # all of it is in the page


def test_the_page_draws_the_gradient_that_is_wrong():
    sides = (package.as_operator(load_function(name)) for package, name in zip((torchp3, jaxp3), EXAMPLE, strict=True))
    report = parity.check(*sides, (np.linspace(-3, 3, 101), np.array(1.5)), only=["vjp"])
    value, gradient = plot_errors(report.case).axes
    assert gradient.get_title() == "vjp, inputs[1], difference in epsilons"
    assert max(line.get_ydata().max() for line in gradient.lines if line.get_label().startswith("float64")) > 1e12
    assert value.get_title() == "value, difference in epsilons"


def test_the_page_draws_what_is_wrong_in_one_output_alone():
    torch_side = torchp3.as_operator(lambda x: (torch.sin(x), torch.cos(x)))
    jax_side = jaxp3.as_operator(lambda x: (jnp.sin(x), 1.01 * jnp.cos(x)))
    report = parity.check(torch_side, jax_side, np.linspace(-3, 3, 11), only=["value"])
    assert plot_errors(report.case).axes[0].get_title() == "value, output[1], difference in epsilons"


def shows_what_it_says(snippet):
    """Run a snippet: it prints the number that its last line says, which is not the one that was expected."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(snippet, {})
    names = {"nan": np.nan, "inf": np.inf}
    said, expected = (
        eval(number, names) for number in snippet.splitlines()[-1][2 : -len(" was expected")].split(", and ")
    )
    assert np.isclose(complex(printed.getvalue()), said, rtol=1e-6, equal_nan=True), snippet
    assert not np.array_equal(said, expected, equal_nan=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAULTY)
def test_each_snippet_of_a_faulty_port_shows_the_difference(name):
    faulty = FAULTY[name]
    if not (faulty.port.program or faulty.reference.program) or faulty.check == "compiled":
        return
    report = parity.check(faulty.reference, faulty.port, faulty.inputs, only=faulty.check, **faulty.options)
    for finding in report[faulty.check].findings:
        if finding.snippet:
            shows_what_it_says(finding.snippet)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("inputs", "only"),
    [
        ((np.linspace(-3, 3, 5), np.array(1.5)), ["vjp", "vjp of vjp", "special values"]),
        pytest.param((np.linspace(-3, 3, 5), np.array(1.5)), None, marks=pytest.mark.slow),
        pytest.param((np.array([-2.0, np.pi]), np.array(0.5)), None, marks=pytest.mark.slow),
    ],
)
def test_each_snippet_is_a_program_that_prints_what_was_got(inputs, only, tmp_path):
    sides = (package.as_operator(load_function(name)) for package, name in zip((torchp3, jaxp3), EXAMPLE, strict=True))
    report = parity.check(*sides, inputs, only=only, compiled=False)
    shown = [f for check in report.failed for f in check.findings if f.snippet]
    assert {finding.mismatch.precision for finding in shown} >= {"float64", "float32"}
    for finding in shown:
        shows_what_it_says(finding.snippet)
    if only is None:
        (tmp_path / "shown.py").write_text(shown[0].snippet)
        finished = run(sys.executable, tmp_path / "shown.py")
        assert finished.returncode == 0, finished.stderr


NESTED = "def f(x, p): return x * p['w'] - p['b'][0]\ndef g(x, p): return x * p['w'] - 1.01 * p['b'][0]\n"


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("arguments", [None, ("p",)])
def test_a_snippet_of_nested_inputs_runs(by_name, arguments, tmp_path):
    (tmp_path / "nested.py").write_text(NESTED)
    f, g = (load_function(f"{tmp_path / 'nested.py'}:{name}") for name in "fg")
    parameters = {"w": np.linspace(1, 2, 4).reshape(2, 2), "b": [np.linspace(3, 4, 4).reshape(2, 2), None]}
    x = np.linspace(-1, 1, 4).reshape(2, 2)
    if arguments is not None:
        arguments = arguments if by_name else (1,)
    sides = torchp3.as_operator(f, arguments=arguments), jaxp3.as_operator(g, arguments=arguments)
    report = parity.check(*sides, {"p": parameters, "x": x} if by_name else (x, parameters), only=["value", "vjp"])
    snippets = [finding.snippet for check in report.failed for finding in check.findings]
    assert all(snippets)
    for snippet in snippets:
        shows_what_it_says(snippet)


def test_a_snippet_has_the_options_of_the_operator():
    port = torchp3.as_operator(leaky_relu, arguments=(0,), negative_slope=0.5)
    report = parity.check(jaxp3.as_operator(jax.nn.leaky_relu), port, np.array([-3.0, 4.0]), only=["value"])
    (finding, *_) = report["value"].findings
    assert "functional:leaky_relu'), arguments=(0,), negative_slope=0.5)" in finding.snippet
    printed = StringIO()
    with redirect_stdout(printed):
        exec(finding.snippet, {})
    assert float(printed.getvalue()) == finding.mismatch.got


def test_both_sides_of_one_file_have_snippets(tmp_path):
    (tmp_path / "both.py").write_text(
        "import torch, jax.numpy as jnp\ndef f(x): return torch.sin(x)\ndef g(x): return 1.01 * jnp.cos(x)\n"
        "def true(x):\n    import numpy\n    return numpy.exp(x)\n"
    )
    names = [f"{tmp_path / 'both.py'}:{name}" for name in ("f", "g", "true")]
    f, g, true = map(load_function, names)
    report = parity.check(
        torchp3.as_operator(f), jaxp3.as_operator(g), np.linspace(0, 1, 3), only=["value"], closed_form=true
    )
    assert {finding.place.side for finding in report["value"].findings if finding.snippet} == {
        "reference",
        "port",
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ([1.5, float("nan")], "[1.5, float('nan')]"),
        (-float("inf"), "float('-inf')"),
        (complex(1, float("inf")), "complex(1.0, float('inf'))"),
        (True, "True"),
    ],
)
def test_numbers_as_python(number, text):
    assert text_of(number) == text
    assert repr(eval(text)) == repr(number)


def test_what_cannot_be_imported_has_no_snippet():
    sides = torchp3.as_operator(torch.sin), jaxp3.as_operator(lambda x: 1.01 * jnp.sin(x))
    (result,) = parity.check(*sides, np.linspace(-3, 3, 5), only=["value"]).checks
    assert result.verdict == "failed"
    assert [finding.snippet for finding in result.findings] == [""]


EXITS = """
import sys, torch

def closed(x): sys.exit(0)
def port(x): sys.exit("done")

class Named:
    __name__ = property(lambda self: sys.exit())
    def __call__(self, x): return x

named = Named()
"""


@EITHER_WAY
@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (["torch:sin", "jax.numpy:cos", "--closed-form", "exits:closed"], "closed_form cannot be called"),
        (["torch:sin", "exits:port"], "cannot be called with inputs of"),
        (["exits:named", "jax.numpy:cos"], "a function has called sys.exit(None)"),
    ],
)
def test_a_function_that_exits_is_no_success(command, tmp_path, sides, said):
    (tmp_path / "exits.py").write_text(EXITS)
    refused(command("p3", "check", *sides, "--input", "linspace(0, 1, 9)", "--only", "value", cwd=tmp_path), said)


def test_a_closed_form_that_exits_is_an_input_error():
    sides = torchp3.as_operator(torch.sin), jaxp3.as_operator(jnp.cos)
    with pytest.raises(InputError, match=r"closed_form cannot be called .* SystemExit: 0"):
        parity.check(*sides, np.linspace(0, 1, 9), closed_form=lambda x: sys.exit(0))


def test_its_help_has_its_own_exit_codes():
    said = " ".join(CliRunner().invoke(p3_command(), ["check", "--help"]).output.split())
    assert "Exit code: 0 if no check failed, 1 if a check failed, 2 if the command or its input is wrong" in said
    assert "diverged" not in said


@pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium")
@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path):
    run("p3", "check", *EXAMPLE, *EXAMPLE_INPUTS, "--only", "vjp", "--report", tmp_path / "report.html")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = ["chromium", *flags.split(), "--disable-component-update", "--disable-sync"]
    folder = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [*command, folder, "--dump-dom", tmp_path / "report.html"], capture_output=True, text=True, timeout=120
    )
    assert "<svg" in shown.stdout
    assert re.search(r'<td class="failed">\s*failed', shown.stdout)


def test_progress_is_shown_on_a_terminal():
    main, other = pty.openpty()
    process = subprocess.Popen(
        [SCRIPTS / "p3", "check", *P3, "--only", "value"], stdout=subprocess.DEVNULL, stderr=other, env=os.environ
    )
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait() == 0
    assert b"value" in shown


@EITHER_WAY
def test_keywords_frameworks_and_closed_forms(command, tmp_path):
    (tmp_path / "my_ops.py").write_text(
        "import torch, numpy as np\n"
        "def scaled(x, factor=1): return factor * torch.sin(x)\n"
        "def true(x): return 2 * np.sin(x)\n"
    )
    both = ["my_ops:scaled", "my_ops.py:scaled", "--frameworks", "torch", "torch"]
    options = [
        "--keyword",
        "factor=2",
        "--closed-form",
        "my_ops:true",
        "--input",
        "linspace(0, 1, 9)",
        "--only",
        "value",
    ]
    finished = command("p3", "check", *both, *options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the closed form" in finished.stdout


def test_every_option_reaches_the_checker(monkeypatch):
    given = []
    check = parity.check

    def remember(*sides_and_inputs, **options):
        given.append(options)
        return check(*sides_and_inputs, only=options["only"])

    monkeypatch.setattr(parity, "check", remember)
    options = ["--seed", "7", "--point", "0.5", "--surrogate", "--dtype", "float32", "--only", "value", "--no-compiled"]
    options += ["--not-linear", "--edges", "fail", "--key", "1", "--state", "0"]
    result = CliRunner().invoke(p3_command(), ["check", *P3, *options], standalone_mode=False)
    assert result.return_value == 0
    (options,) = given
    progress = options.pop("progress")
    assert callable(progress)
    assert options == {
        "seed": 7,
        "points": (0.5,),
        "surrogate": True,
        "linear": False,
        "keys": (1,),
        "states": (0,),
        "timeout": None,
        "edges": "fail",
        "dtypes": ("float32",),
        "only": ("value",),
        "compiled": False,
    }


WRONG_ON_TWO_DEVICES = """
import jax
from jax.experimental.custom_partitioning import custom_partitioning

def shares(x): return x / x.sum()

# As if it were elementwise: each device divides by the sum of its own part.
partitioned = custom_partitioning(shares)
partitioned.def_partition(
    partition=lambda mesh, arguments, result: (mesh, shares, result.sharding, (arguments[0].sharding,)),
    sharding_rule="i -> i",
)

@jax.custom_vjp
def port(x): return partitioned(x)

port.defvjp(lambda x: (port(x), x), lambda x, cotangent: jax.vjp(shares, x)[1](cotangent))
"""


@pytest.mark.slow
def test_what_is_wrong_on_two_devices_alone_is_seen_since_there_are_two(tmp_path):
    (tmp_path / "my_ops.py").write_text(WRONG_ON_TWO_DEVICES)
    command = [
        "p3",
        "check",
        "my_ops:shares",
        "my_ops:port",
        "--frameworks",
        "jax",
        "jax",
        "--input",
        "linspace(1, 2, 8)",
    ]
    wide = {"JAX_ENABLE_X64": "1"}  # JAX partitions in threads of its own, which a with-block does not reach
    finished = run(*command, "--only", "compiled", cwd=tmp_path, env=wide)
    assert finished.returncode == 1
    assert "sharded jax.jit, value, output: it is up to" in finished.stdout
    finished = run(*command, cwd=tmp_path, env=wide | {"JAX_NUM_CPU_DEVICES": "1"})
    assert finished.returncode == 0


def test_devices_are_asked_for_while_jax_is_imported_and_where_nobody_else_does(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with two_devices():
        assert os.environ["JAX_NUM_CPU_DEVICES"] == "2"
    assert "JAX_NUM_CPU_DEVICES" not in os.environ
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    with two_devices():
        assert "JAX_NUM_CPU_DEVICES" not in os.environ
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    with two_devices():
        assert os.environ["JAX_NUM_CPU_DEVICES"] == "3"


@EITHER_WAY
def test_a_function_that_exits_is_bad_input(command, tmp_path):
    (tmp_path / "my_ops.py").write_text("import sys\ndef f(x): sys.exit(0)\n")
    finished = command("p3", "check", "my_ops:f", "torch:sin", "--input", "[1.0]", cwd=tmp_path)
    assert finished.returncode == 2
    assert "SystemExit" in finished.stderr
    assert finished.stderr.count("\n") == 1


@EITHER_WAY
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.sin", "jax.numpy:sin", "--input", "1.0"], "names no function; give module:function"),
        (["nowhere:f", "jax.numpy:sin", "--input", "1.0"], "No module named 'nowhere'; is it in the current folder"),
        (["nowhere.py:f", "jax.numpy:sin", "--input", "1.0"], "there is no such file"),
        (["math:pie", "jax.numpy:sin", "--input", "1.0"], "math has no 'pie'; it has acos"),
        (["math:pi", "jax.numpy:sin", "--input", "1.0"], "is float, and must be a function"),
        (["math:sin", "jax.numpy:sin", "--input", "[1.0, 2.0]"], "sin (PyTorch"),
        (["torch:sin", "jax.numpy:sin"], "Missing option '--input'"),
        (
            ["torch:sin", "jax.numpy:sin", "--input", "__import__('os').getcwd()"],
            "is not allowed there; give a file.npy",
        ),
        (["torch:sin", "jax.numpy:sin", "--input", "linspace(0, 1"], "is not an expression"),
        (["torch:sin", "jax.numpy:sin", "--input", "linspace(0)"], "cannot be made"),
        (["torch:sin", "jax.numpy:sin", "--input", "x.npy"], "--input x.npy: cannot be read"),
        (["torch:sin", "jax.numpy:sin", "--input", "1.0", "--only", "vpj"], "'vpj' is not one of"),
        (["torch:sin", "jax.numpy:sin", "--input", "1.0", "--report", "r.pdf"], "must end in .json or .html"),
        (["torch:sin", "jax.numpy:sin", "--input", "1.0", "--keyword", "alpha"], "is not of the form name=value"),
        (["torch:matmul", "jax.numpy:matmul", "--input", "ones([2, 3])"], "matmul (PyTorch"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, arguments, message, tmp_path):
    refused(command("p3", "check", *arguments, cwd=tmp_path), message)


def test_bad_input_is_exit_code_2_of_a_process():
    # Of two that load no framework.
    refused(run("p3", "check", "torch:sin", "jax.numpy:sin"), "Missing option '--input'")
    refused(run("p3", "check", "torch:sin", "jax.numpy:sin", "--input", "1.0", "--only", "vpj"), "is not one of")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", 1.5),
        ("[1, 2, -3]", [1, 2, -3]),
        ("linspace(-3, 3, 7)", np.linspace(-3, 3, 7)),
        ("array([-inf, nan, pi])", [-np.inf, np.nan, np.pi]),
        ("linspace(0, 1, 3) + 1j * ones(3)", np.array([1j, 0.5 + 1j, 1 + 1j])),
        ("reshape(arange(6), [2, 3]) / 2", np.arange(6).reshape(2, 3) / 2),
        ("linspace(start=0, stop=1, num=2)", [0, 1]),
        ("normal(2, 3, seed=5)", np.random.default_rng(5).normal(size=(2, 3))),
        ("uniform(-1, 1, 4)", np.random.default_rng(0).uniform(-1, 1, 4)),
        ("array([True, False])", [True, False]),
        ("integers(0, 5, [2, 3], seed=1)", np.random.default_rng(1).integers(0, 5, (2, 3))),
        ("booleans(8)", np.random.default_rng(0).integers(0, 2, 8).astype(bool)),
    ],
)
def test_expressions(text, expected):
    np.testing.assert_array_equal(parse_input(text), expected)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "open('f')",
        "linspace.__class__",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "2 ** 9 ** 9",
        "'a'",
        "linspace(*[0, 1])",
        "ones(10**30)",
        "ones(100000000000000)",
        "zeros(1)[0]",
        "1 if 1 else 2",
        "\0",
        "(" * 5000,
    ],
)
def test_what_is_no_expression_is_refused_and_never_run(text):
    with pytest.raises(InputError) as caught:
        parse_input(text)
    assert "\n" not in str(caught.value)


def test_files(tmp_path):
    line = np.linspace(0, 1, 5)
    np.save(tmp_path / "x.npy", line)
    np.savez(tmp_path / "several.npz", a=line, b=2 * line)
    np.testing.assert_array_equal(parse_input(f"{tmp_path}/x.npy"), line)
    np.testing.assert_array_equal(parse_input(f"{tmp_path}/several.npz:b"), 2 * line)
    named = parse_input(f"{tmp_path}/several.npz")
    assert list(named) == ["a", "b"]
    np.testing.assert_array_equal(named["b"], 2 * line)
    with pytest.raises(InputError, match="has no array 'c'"):
        parse_input(f"{tmp_path}/several.npz:c")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="cannot be read"):
        parse_input(f"{tmp_path}/bad.npy")


def test_keywords_are_literals_or_text():
    assert parse_keyword("alpha=0.5") == ("alpha", 0.5)
    assert parse_keyword("axis=(0, 1)") == ("axis", (0, 1))
    assert parse_keyword("approximate=tanh") == ("approximate", "tanh")


def test_a_module_that_fails_is_an_input_error(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"importing .*broken\.py raised ZeroDivisionError"):
        load_function(f"{tmp_path}/broken.py:f")


def test_the_arguments_by_name_and_masks(tmp_path):
    (tmp_path / "masked.py").write_text(
        "import torch, jax.numpy as jnp\ndef f(x, mask): return torch.where(mask, x, 0.0)\n"
        "def g(x, mask): return jnp.where(mask, x, 0.0)\n"
    )
    np.savez(tmp_path / "inputs.npz", mask=np.array([True, False, True]), x=np.array([1.0, 2.0, 3.0]))
    sides = [f"{tmp_path / 'masked.py'}:{name}" for name in ("f", "g")]
    by_name = call("p3", "check", *sides, "--input", tmp_path / "inputs.npz", "--only", "vjp", "--only", "integers")
    by_position = call(
        "p3", "check", *sides, "--input", "[1.0, 2.0, 3.0]", "--input", "array([True, False, True])", "--only", "vjp"
    )
    assert (by_name.returncode, by_position.returncode) == (0, 0), by_name.stderr + by_position.stderr


def test_functions_in_the_wrong_order_are_told():
    finished = call("p3", "check", *P3[1::-1], "--input", "linspace(0, 1, 5)")
    assert finished.returncode == 2
    assert "in the order of --frameworks" in finished.stderr
    with pytest.raises(InputError, match="are torch= and jax= exchanged"):
        p3.check(torch=jnp.sin, jax=torch.sin, inputs=np.ones(3))
    with pytest.raises(InputError, match="cannot be called") as caught:
        p3.check(torch=lambda x: 1 / 0, jax=jnp.sin, inputs=np.ones(3))
    assert "exchanged" not in str(caught.value)


def test_help_shows_every_option_with_its_default():
    parameters = inspect.signature(p3.check).parameters
    assert list(parameters)[:5] == ["torch", "jax", "inputs", "only", "progress"]
    assert set(parameters) - {"torch", "jax", "inputs", "only", "progress"} == set(Options.__annotations__)
    for name in parameters:
        assert re.search(rf"^    (\w+, )?{name}(, \w+)? : ", p3.check.__doc__, re.MULTILINE), name
    assert p3.check(
        torch=torch.sin,
        jax=jnp.sin,
        inputs=np.ones(3),
        only="value",
        **{name: parameters[name].default for name in Options.__annotations__},
    ).ok


def test_a_line_now_and_then_in_a_pipe(monkeypatch):
    monkeypatch.setattr(commands_check, "BETWEEN_LINES", 0.01)
    with redirect_stderr(StringIO()) as told, commands_check.check_progress() as progress:
        progress("vjp", 1, 22)
        time.sleep(0.2)
    assert "vjp: 1 of 22 done" in told.getvalue()
