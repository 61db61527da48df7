"""Who imports whom, each asked in a process of its own; and that asking can be answered with no."""

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "jax"}


def imported_by(*statements: str) -> list[set[str]]:
    """The frameworks that are loaded after each of the statements, which run in one process."""
    program = "import sys\n" + "\n".join(
        f"{statement}\nprint(*sorted({FRAMEWORKS} & set(sys.modules)))" for statement in statements
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in finished.stdout.splitlines()]


EVERYTHING_IN = "import pkgutil, importlib\n{package} = importlib.import_module('{package}')\n" + (
    "for module in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
    "    if not module.name.endswith('__main__'): importlib.import_module(module.name)"
)


def test_what_both_share_loads_no_framework():
    assert imported_by(EVERYTHING_IN.format(package="p3")) == [set()]


@pytest.mark.parametrize(("package", "framework", "other"), [("torchp3", "torch", "jax"), ("jaxp3", "jax", "torch")])
def test_a_package_loads_its_own_framework_alone_on_first_use_and_works_without_the_other(package, framework, other):
    missing = f"sys.modules['{other}'] = None"
    fit = f"assert str({package}.fit(p3.TrainingSpec(steps=2, jit=False))).startswith('Result: y = ')"
    loaded = imported_by(f"import {package}", EVERYTHING_IN.format(package=package), f"{missing}\nimport p3\n{fit}")
    assert loaded == [set(), {framework}, FRAMEWORKS]  # the last with what is missing


@pytest.mark.slow
def test_the_tests_above_can_fail():
    assert imported_by("import torch", "import jaxp3.fitting.train") == [{"torch"}, FRAMEWORKS]


STATE = """
import jax, numpy, random, torch, warnings
state = lambda: (
    (jax.config.jax_enable_x64, jax.config.jax_default_device, jax.config.jax_default_matmul_precision),
    (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled()),
    (torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate(), numpy.geterr()),
    list(warnings.filters),
)
"""


@pytest.mark.slow
def test_importing_changes_no_global_state():
    # What libraries change by themselves is loaded first: jax and torch add warnings' filters, rich draws a number.
    program = (
        f"{STATE}\nimport importlib, pkgutil, jax.numpy, jinja2, matplotlib.figure, optax, rich.style, torch._dynamo\n"
        f"before = state()\n"
    )
    for package in ("p3", "torchp3", "jaxp3"):
        program += f"{EVERYTHING_IN.format(package=package)}\nassert state() == before, '{package}'\n"
    subprocess.run([sys.executable, "-c", program], check=True)
