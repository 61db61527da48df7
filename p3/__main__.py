"""`python -m p3`."""

from p3.cli import p3

p3()
