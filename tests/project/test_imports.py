"""Who imports whom, each asked in a process of its own; and that asking can be answered with no."""

import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "jax"}


def imported_by(statements: str) -> set[str]:
    """The frameworks that are loaded after the statements."""
    program = f"import sys\n{statements}\nprint(*sorted({FRAMEWORKS} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


EVERYTHING_IN = "import pkgutil, importlib\n{package} = importlib.import_module('{package}')\n" + (
    "for module in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
    "    if not module.name.endswith('__main__'): importlib.import_module(module.name)"
)


@pytest.mark.parametrize(("package", "allowed"), [("p3", set()), ("torchp3", {"torch"}), ("jaxp3", {"jax"})])
def test_a_package_loads_its_own_framework_alone(package, allowed):
    assert imported_by(EVERYTHING_IN.format(package=package)) == allowed


@pytest.mark.parametrize("package", ["torchp3", "jaxp3"])
def test_a_framework_loads_on_first_use(package):
    assert imported_by(f"import {package}") == set()


def test_the_tests_above_can_fail():
    assert imported_by("import torch") == {"torch"}
    assert imported_by("import jaxp3.fitting.train, torchp3.fitting.train") == FRAMEWORKS


@pytest.mark.parametrize(("package", "missing"), [("torchp3", "jax"), ("jaxp3", "torch")])
def test_a_package_works_without_the_other_framework(package, missing):
    program = (
        f"import sys; sys.modules['{missing}'] = None\n"
        f"import p3, {package}; print({package}.fit(p3.TrainingSpec(steps=2, jit=False)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("Result: y = ")


STATE = """
import jax, numpy, random, torch, warnings
state = lambda: (
    (jax.config.jax_enable_x64, jax.config.jax_default_device, jax.config.jax_default_matmul_precision),
    (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled()),
    (torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate(), numpy.geterr()),
    list(warnings.filters),
)
"""


def test_importing_changes_no_global_state():
    # What libraries change by themselves is loaded first: jax and torch add warnings' filters, rich draws a number.
    program = (
        f"{STATE}\nimport importlib, pkgutil, jax.numpy, jinja2, matplotlib.figure, optax, rich.style, torch._dynamo\n"
        f"before = state()\n"
    )
    for package in ("p3", "torchp3", "jaxp3"):
        program += f"{EVERYTHING_IN.format(package=package)}\nassert state() == before, '{package}'\n"
    subprocess.run([sys.executable, "-c", program], check=True)
