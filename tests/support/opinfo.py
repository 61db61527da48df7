"""
The inputs that PyTorch's own tests make for the functions of the atlas, written to a file.

It runs in a process of its own, since what it imports switches settings of PyTorch off for the whole process.
"""

import pickle
import re
import sys

import torch

from comparisons.atlas.pairs import load_pairs

COMPLEX = ("absolute", "angle", "conj", "real", "sgn", "multiply", "exp", "log", "sqrt", "pow", "tanh", "asin", "acosh")


def samples():
    """For each pair whose function is called with its arguments alone, the arrays of its smallest sample."""
    from torch.testing._internal.common_methods_invocations import op_db

    operators = {each.name: each for each in op_db if not each.variant_test_name}
    found = {}
    for name, pair in load_pairs().items():
        called = re.fullmatch(r"torch\.([\w.]+)\((.*)\)", pair.torch)
        if called is None or called[2].split(", ") != list(pair.inputs) or called[1] not in operators:
            continue
        kind = torch.complex128 if name in [f"complex.{each}" for each in COMPLEX] else torch.float64
        given = []
        for sample in operators[called[1]].sample_inputs("cpu", kind, requires_grad=False):
            arrays = (sample.input, *sample.args)
            if sample.kwargs or len(arrays) != len(pair.inputs):
                continue
            if all(isinstance(x, torch.Tensor) and 2 <= x.numel() <= 500 for x in arrays):
                given.append(tuple(x.detach().resolve_conj().numpy() for x in arrays))
        if given:
            found[name] = min(given, key=lambda arrays: sum(x.size for x in arrays))
    return found


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        pickle.dump(samples(), file)
