"""Python that shows what each framework gives: the text of a program that needs nothing but the two."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from p3.parity.function import Arrays, at_precision, is_inexact, wide
from p3.parity.quantity import Quantity

TEMPLATE = """\
{imports}

{names} = {values}

{torch_arrays}
f = lambda {in_torch}
{torch_leaves}{show_torch}

{jax_arrays}
f = lambda {in_jax}
{show_jax}
"""
CAREFULLY = """\
try:
    {show}
except Exception as error:
    print("{framework}", "raises", type(error).__name__, str(error).strip().split("\\n")[0])"""

# The quantity of f at x, along v and w: what users of each would write.
IN_JAX = {
    "value": "f({x})",
    "vjp": "jax.vjp(f, {x})[1]({v})",
    "jvp": "jax.jvp(f, ({x},), ({w},))[1]",
    "vjp of vjp": "jax.vjp(lambda {names}: jax.vjp(f, {names})[1]({v}), {x})[1](({w},))",
    "jvp of vjp": "jax.jvp(lambda {names}: jax.vjp(f, {names})[1]({v}), ({x},), ({w},))[1]",
}
IN_TORCH = {
    "value": "f({x})",
    "vjp": "torch.autograd.grad(f(*leaves), leaves, {v}, materialize_grads=True)",
    "jvp": "torch.func.jvp(f, ({x},), ({w},))[1]",
    "vjp of vjp": "torch.autograd.grad(sum((g * w).sum() for g, w in zip("
    "torch.autograd.grad(f(*leaves), leaves, {v}, create_graph=True), ({w},))), leaves, materialize_grads=True)",
    "jvp of vjp": "torch.func.jvp(lambda {names}: torch.func.vjp(f, {names})[1]({v}), ({x},), ({w},))[1]",
}
# Gradients are the transpose's, of which PyTorch's are the conjugates.
CONJUGATED = {
    "vjp": "[g.conj() for g in torch.autograd.grad(f(*leaves), leaves, {v})]",
    "vjp of vjp": "[h.conj() for h in torch.autograd.grad([g.conj() for g in "
    "torch.autograd.grad(f(*leaves), leaves, {v}, create_graph=True)], leaves, ({w},))]",
    "jvp of vjp": "torch.func.jvp(lambda {names}: tuple(g.conj() for g in torch.func.vjp(f, {names})[1]({v})), "
    "({x},), ({w},))[1]",
}
COMPLEX = {"float64": "complex128"}


def snippet(
    in_torch: str,
    in_jax: str,
    names: Sequence[str],
    outputs: Arrays,
    quantity: Quantity,
    precision: str,
    shown: str = "tolist()",
    raises: bool = False,
) -> str:
    """
    The program.

    Parameters
    ----------
    in_torch, in_jax : the function, as expressions of the names
    outputs : what it gives, since derivatives are of the floating ones alone
    quantity : what is shown, and of what
    precision : in which
    shown : of each result, a method or attribute
    raises : whether one of them does
    """
    moving = [name for name, x in zip(names, quantity.groups[0], strict=True) if is_inexact(x)]
    constant = [name for name in names if name not in moving]
    given = dict(zip(names, quantity.groups[0], strict=True))
    along: dict[str, list[str]] = {"v": [], "w": []}
    for letter, group in zip({"jvp": "w"}.get(quantity.name, "vw"), quantity.groups[1:], strict=False):
        along[letter] = [letter if len(group) == 1 else f"{letter}{k}" for k in range(len(group))]
        given |= dict(zip(along[letter], group, strict=True))
    is_complex = any(x.dtype.kind == "c" for x in (*given.values(), *outputs))
    kinds = {"complex_array" if x.dtype.kind == "c" else "array" for x in given.values() if is_inexact(x)}
    one_floating = len(outputs) > 1 and sum(map(is_inexact, outputs)) == 1
    literals = [literal(x, precision) for x in given.values()]

    def array_of(name: str) -> str:
        return f"{'complex_array' if given[name].dtype.kind == 'c' else 'array'}({name})"

    def arrays(make: str, dtype: str) -> str:
        dtypes = {"array": precision, "complex_array": COMPLEX.get(precision, "complex64")}
        return "\n".join(f"{kind} = lambda x: {make}(x, dtype={dtype.format(dtypes[kind])})" for kind in sorted(kinds))

    def function(text: str, make: str) -> str:
        if quantity.name != "value" and one_floating:
            text = f"{text}[0]"
        elif len(outputs) > 1:
            text = f"tuple({text})"
        return f"{', '.join([*moving, *(f'{name}={make}({name})' for name in constant)])}: {text}"

    def show(framework: str, calls: Mapping[str, str], conjugate: bool) -> str:
        v, w = (list(map(array_of, along[letter])) for letter in "vw")
        if conjugate:
            v = [f"{a}.conj()" for a in v]
            w = [f"{a}.conj()" for a in w] if quantity.name == "vjp of vjp" else w
        call = calls[quantity.name].format(
            names=", ".join(moving),
            x=", ".join(map(array_of, moving)),
            v=", ".join(v) if len(v) == 1 else f"({', '.join(v)})",
            w=", ".join(w),
        )
        single = quantity.name in ("value", "jvp") and (len(outputs) == 1 or (quantity.name == "jvp" and one_floating))
        line = (
            f'print("{framework}", {call}.{shown})' if single else f'print("{framework}", *(y.{shown} for y in {call}))'
        )
        return CAREFULLY.format(framework=framework, show=line) if raises else line

    leaves = f"leaves = [{', '.join(f'{array_of(name)}.requires_grad_()' for name in moving)}]\n"
    return TEMPLATE.format(
        imports=imports(f"{in_torch} {in_jax}", literals, precision),
        names=", ".join(given),
        values=", ".join(literals),
        torch_arrays=arrays("torch.tensor", "torch.{}"),
        jax_arrays=arrays("jnp.array", '"{}"'),
        in_torch=function(in_torch, "torch.tensor"),
        in_jax=function(in_jax, "jnp.array"),
        torch_leaves=leaves if "leaves" in IN_TORCH[quantity.name] else "",
        show_torch=show("PyTorch", IN_TORCH | CONJUGATED if is_complex else IN_TORCH, is_complex),
        show_jax=show("JAX", IN_JAX, False),
    )


def imports(text: str, literals: list[str], precision: str) -> str:
    """What the program needs."""
    lines = ["import jax", "import jax.numpy as jnp", "import torch"]
    lines += sorted({f"import {name}" for name in re.findall(r"jax\.scipy\.\w+|jax\.image|optax", text)})
    ends = sorted({name for value in literals for name in re.findall(r"\b(?:inf|nan)\b", value)})
    lines += [f"from math import {', '.join(ends)}"] if ends else []
    if precision == "float64":
        lines += ["", 'jax.config.update("jax_enable_x64", True)']
    return "\n".join(lines)


def literal(x: np.ndarray, precision: str) -> str:
    """The numbers, as short as they are the same in a precision."""
    if not x.size:
        return f"torch.zeros({x.shape}, dtype=torch.{'float64' if is_inexact(x) else 'int64'}).tolist()"
    if not is_inexact(x):
        return repr(x.tolist())
    x = at_precision((x,), precision)[0]

    def text(value: np.generic) -> str:
        if x.dtype.kind == "c":
            return repr(complex(value))
        return repr(float(value) if x.dtype == "bfloat16" else float(str(value)))

    def nested(x: np.ndarray) -> str:
        return text(x[()]) if x.ndim == 0 else f"[{', '.join(map(nested, x))}]"

    return nested(x)


def at_element(quantity: Quantity, element: tuple[int, ...]) -> Quantity:
    """The quantity of one element of an elementwise function, alone."""
    groups = tuple(tuple(np.asarray(wide(x)[element]) for x in group) for group in quantity.groups)
    return quantity._replace(groups=groups)
