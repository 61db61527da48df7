"""Where PyTorch and JAX differ, function by function."""
