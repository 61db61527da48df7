"""`python -m jaxp3`."""

from p3.cli import jaxp3

jaxp3()
