"""The operator itself, in each framework."""
