"""`python -m comparisons.benchmark`."""

from comparisons.benchmark.benchmark import main

main()
