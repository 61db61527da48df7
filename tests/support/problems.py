"""The two problems that the tests fit, and fits of them that are made once."""

from functools import cache

from comparisons.pages import ROOT
from p3 import FitResult, TrainingSpec
from p3.backends import BackendName, load

COMPARISONS = ROOT / "comparisons"
PROBLEMS = {name: TrainingSpec.from_toml(COMPARISONS / f"{name}.toml") for name in ("tutorial", "asymmetric")}


@cache
def fitted(backend: BackendName, spec: TrainingSpec) -> FitResult:
    """A fit, made once for all the tests that look at it."""
    return load(backend).fit(spec)
