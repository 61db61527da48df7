"""The fit of the tutorial's problem, and its commands."""
