"""The device of the specification, as PyTorch's own."""

import torch

from p3.errors import InputError


def find_device(name: str) -> torch.device:
    """
    "cpu", "gpu", or "auto" for a GPU where PyTorch can use one and the CPU where not.

    Raises
    ------
    InputError
        "gpu", and PyTorch can use none.
    """
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "gpu":
        raise InputError(
            f"device = 'gpu', but PyTorch {torch.__version__} finds no CUDA GPU; use 'cpu' or 'auto', "
            "or install a CUDA build of PyTorch on a machine with an NVIDIA GPU and driver"
        )
    return torch.device("cpu")


def describe_device(device: torch.device) -> str:
    """The device's name for a result."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
