"""`python -m comparisons.scaling`."""

from comparisons.scaling.scaling import main

main()
