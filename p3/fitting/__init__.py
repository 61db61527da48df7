"""The tutorial's problem: its specification, data, closed forms, results and their comparison."""
