"""The checks, each a function of a `Case` to a `CheckResult`."""
