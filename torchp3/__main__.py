"""`python -m torchp3`."""

from p3.cli import torchp3

torchp3()
