"""Inputs and functions by name, as the command takes them, and the name of a function."""

import ast
import hashlib
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from p3.errors import InputError

# What an expression may call: NumPy's functions of these names, and two of its random generators with a seed.
MAKERS = ("linspace", "logspace", "geomspace", "arange", "zeros", "ones", "full", "array", "reshape", "eye")
NAMES = {"inf": np.inf, "nan": np.nan, "pi": np.pi}
OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LOADED = "checked_"  # what the name of a module begins with that was loaded from a file
ALLOWED = (
    f"a file.npy, a file.npz, a file.npz:name, or an expression of numbers, True, False, {', '.join(NAMES)}, lists, "
    f"+ - * / and {', '.join(MAKERS)}, normal(*shape, seed=0), uniform(low, high, shape, seed=0), "
    "integers(low, high, shape, seed=0), booleans(*shape, seed=0)"
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def uniform(low: float, high: float, shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Uniform random numbers."""
    return np.random.default_rng(seed).uniform(low, high, shape)


def integers(low: int, high: int, shape: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Uniform random whole numbers from low up to, and not including, high."""
    return np.random.default_rng(seed).integers(low, high, shape)


def booleans(*shape: int, seed: int = 0) -> np.ndarray:
    """Random truth values."""
    return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)


RANDOM: dict[str, Callable[..., np.ndarray]] = {
    "normal": normal,
    "uniform": uniform,
    "integers": integers,
    "booleans": booleans,
}


def parse_input(text: str) -> np.ndarray | dict[str, np.ndarray]:
    """
    The array that an expression or a file holds, or the arrays of a .npz file by their names.

    The expression is parsed, and never evaluated as Python.

    Raises
    ------
    InputError
        It is neither, or cannot be made.
    """
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    path, _, name = text.partition(":")
    if path.endswith((".npy", ".npz")):
        return read_array(path, name)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"--input {shown} is not an expression; give {ALLOWED}") from None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(evaluate(tree.body, shown))
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise InputError(f"--input {shown} cannot be made: {error}") from error
    except MemoryError:
        raise InputError(f"--input {shown} is larger than the memory; give fewer points") from None


def evaluate(node: ast.expr, text: str) -> Any:
    """The value of a part of an expression, whose text is for the message."""
    match node:
        case ast.Constant(value=int() | float() | complex() as number):  # True and False among them
            return number
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [evaluate(element, text) for element in elements]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](np.asarray(evaluate(operand, text))[()])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](np.asarray(evaluate(left, text))[()], np.asarray(evaluate(right, text))[()])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in (*MAKERS, *RANDOM) and all(
            keyword.arg for keyword in keywords
        ):
            maker: Callable[..., Any] = RANDOM[name] if name in RANDOM else getattr(np, name)
            named = {keyword.arg: evaluate(keyword.value, text) for keyword in keywords if keyword.arg}
            return maker(*(evaluate(arg, text) for arg in args), **named)
    part = ast.unparse(node)
    raise InputError(f"--input {text}: {part[:60]!r} is not allowed there; give {ALLOWED}")


def parse_keyword(text: str) -> tuple[str, Any]:
    """
    The name and the value of "name=value", the value being a Python literal or else a string.

    Raises
    ------
    InputError
        It is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or name in ("f", "arguments"):
        raise InputError(f"--keyword {text!r} is not of the form name=value, as in alpha=0.5, of a keyword but f")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return name, value


def read_array(path: str, name: str) -> np.ndarray | dict[str, np.ndarray]:
    """The array in a .npy file, or the one of a name in a .npz file; without a name all of them."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"--input {path}: cannot be read: {reason}") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    names = list(loaded)
    if not name and names:
        return {each: member(path, loaded, each) for each in names}
    if name not in names:
        given = f"has no array {name!r}" if name else f"has {len(names)} arrays"
        raise InputError(f"--input {path} {given}; give {', '.join(f'{path}:{n}' for n in names) or 'another file'}")
    return member(path, loaded, name)


def member(path: str, loaded: Mapping[str, Any], name: str) -> np.ndarray:
    """One array of a .npz file."""
    try:
        return np.asarray(loaded[name])
    except (ValueError, BadZipFile) as error:
        raise InputError(f"--input {path}:{name}: cannot be read: {error}") from error


def some(names: list[str]) -> str:
    """The first ten names."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def load_function(text: str) -> Any:
    """
    The function that "module:name" or "file.py:name" names, as `load_object`.

    Raises
    ------
    InputError
        There is none, or it is no function.
    """
    function = load_object(text)
    if not callable(function):
        raise InputError(f"{text} is {type(function).__name__}, and must be a function")
    return function


def load_object(text: str) -> Any:
    """
    What "module:name" or "file.py:name" names, modules being looked for in the current folder as well.

    Raises
    ------
    InputError
        There is none.
    """
    module_name, colon, name = text.rpartition(":")
    if not colon or not module_name or not name:
        raise InputError(f"{text!r} names no function; give module:function or file.py:function, as in my_ops:softplus")
    try:
        module = load_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{text}: {error}; is it in the current folder, or installed?") from error
    except (InputError, OSError):
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
        raise InputError(f"{text}: importing {module_name} raised {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
            raise InputError(f"{text}: {module_name} has no {part!r}; it has {some(names) or 'no functions'}")
        found = getattr(found, part)
    return found


def name_of(function: Any) -> str | None:
    """The name by which `load_function` finds a function; None for a lambda, a closure, and what stands in a script."""
    module_name, name = getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__":
        return None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function:
        return None
    return f"{module.__file__ if module_name.startswith(LOADED) else module_name}:{name}"


def program_of(package: str, function: Any, options: Mapping[str, Any]) -> str:
    """Python that makes an operator of a function and options; empty where they have no names or values in Python."""
    name = name_of(function)
    try:
        given = [
            f"{option}={value!r}" for option, value in options.items() if ast.literal_eval(repr(value)) is not None
        ]
    except (SyntaxError, ValueError):
        return ""
    if name is None:
        return ""
    lines = [f"import {package}", "from p3.parity.inputs import load_function", ""]
    arguments = ", ".join([f"load_function({name!r})", *given])
    return "\n".join([*lines, f"operator = {package}.as_operator({arguments})"])


def load_module(name: str) -> Any:
    """The module of a name, or in a file."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"{name}: there is no such file")
        # A file may well be called torch.py, or as one in another folder; it is loaded once for both functions.
        name = f"{LOADED}{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove("")
