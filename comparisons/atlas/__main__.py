"""`python -m comparisons.atlas make`."""

from comparisons.atlas.commands import main

main()
