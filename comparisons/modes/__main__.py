"""`python -m comparisons.modes`."""

from comparisons.modes.modes import main

main()
