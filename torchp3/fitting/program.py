"""
Functions of tensors, compiled by AOTInductor, and kept in files for the processes that come after.

`torch.compile` loads its compiler, and traces, in every process anew, which takes seconds however much of the rest is
cached. A program from its file needs neither.
"""

import atexit
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import platformdirs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten, treespec_loads


class CompilerError(Exception):
    """There is no C++ compiler that works."""


class Program:
    """A compiled function, from its file; of the same trees of tensors as the function itself."""

    def __init__(self, path: Path) -> None:
        """Load it. Raises `RuntimeError` if there is none, or none that is whole."""
        # What torch._inductor.aoti_load_package loads, without the second that importing torch._inductor takes.
        self.loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        self.output_tree = treespec_loads(self.loader.get_call_spec()[1])

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        return tree_unflatten(self.loader.run(tree_leaves(arguments)), self.output_tree)


class Operations(TorchDispatchMode):
    """Writes down each operation: its name, its numbers, and the tensors that it takes and gives."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        super().__init__()
        self.lines: list[str] = []
        self.tensors: dict[int, tuple[int, Tensor]] = {}  # by their ids, which are no other's while they are kept

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is no Dynamo here that should skip it, and to say so would import it

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Do the operation, and write it down."""
        for tensor in tree_leaves((arguments, options)):
            if isinstance(tensor, Tensor) and id(tensor) not in self.tensors:
                self.write("constant", tensor, tensor.tolist())  # given by nobody, so it is of the program
        if operation.namespace == "_c10d_functional":  # what other processes have makes no other program
            result = arguments[0].clone()
        else:
            result = operation(*arguments, **(options or {}))
        self.write(operation, arguments, options, result)
        return result

    def write(self, *what: Any) -> None:
        """A line."""
        self.lines.append(str(tree_map_only(Tensor, self.name, what)))

    def name(self, tensor: Tensor) -> str:
        """A tensor by what it is, and when it was first seen."""
        number, _ = self.tensors.setdefault(id(tensor), (len(self.tensors), tensor))
        return f"{number}: {tensor.dtype} {tuple(tensor.shape)} {tensor.device}"


class TensorsForNumbers(TorchFunctionMode):
    """Takes tensors as `alpha` and `value`, as Dynamo does: rules of `torch.optim` give the learning rate so."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Do the operation, or what it stands for."""
        options = options or {}
        factor = options.get("alpha", options.get("value"))
        if not isinstance(factor, Tensor):
            return function(*arguments, **options)
        if function is Tensor.add_:
            total, term = arguments
            return total.add_(factor * term)
        assert function is Tensor.addcdiv_, function
        total, numerator, denominator = arguments
        return total.add_(factor * (numerator / denominator))


# Tracing and compiling change what is the process's own.
LOCK = RLock()


@contextmanager
def tracing() -> Iterator[None]:
    """
    Have `torch.optim`'s rules compute with tensors alone, as they do for `torch.compile` and `torch.export`.

    The flag is the process's own: one thread at a time.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        # Anomalies are looked for in numbers, of which there are none yet.
        with TensorsForNumbers(), torch.autograd.set_detect_anomaly(False):
            yield
    finally:
        torch.compiler._is_compiling_flag = before


def trace(function: Callable[..., Any], arguments: tuple[Any, ...]) -> torch.fx.GraphModule:
    """A function as PyTorch's own operations, at any sizes, with every derivative in it written out by its rule."""
    from torch.fx.experimental.proxy_tensor import make_fx  # which loads the compiler

    with tracing():
        return make_fx(function, tracing_mode="symbolic")(*arguments)


def fingerprint(function: Callable[..., Any], arguments: tuple[Any, ...], about: Any) -> str:
    """
    A digest of each operation that a function does, whoever wrote it, and of what else decides a program.

    Sizes are none of it, but for those of 1: a function must do the same operations at all others.
    """
    operations = Operations()
    small = tree_map_only(Tensor, lambda tensor: tensor.new_zeros([min(size, 2) for size in tensor.shape]), arguments)
    operations.write(
        small, about, torch.__version__, torch.cpu.get_capabilities(), Path(__file__).read_text(encoding="utf-8")
    )
    with tracing(), operations:
        result = function(*small)
    operations.write(result)
    return hashlib.sha256("\n".join(operations.lines).encode()).hexdigest()


def path_of(name: str) -> Path:
    """
    Where the program of that name is kept: in `TORCHP3_CACHE_DIR`, or the user's own cache; if not, for a while.

    A program is code that this process runs. So the directory is made with mode 0700, and neither the directory nor the
    program is used if another user may have written it; `why_unsafe` says what is checked.

    Warns
    -----
    RuntimeWarning
        Another user may have written it. The program is then kept in a directory of this process alone.
    """
    folder = Path(os.environ.get("TORCHP3_CACHE_DIR") or platformdirs.user_cache_path("torchp3"))
    path = folder / name
    with suppress(OSError):  # there is no such directory, and none can be made
        make_private(folder)
        reason = why_unsafe(folder) or (why_unsafe(path) if path.exists() else "")
        if reason:
            warn_once(
                f"the cache of compiled programs is not used: {reason}; make it writable by this user alone (chown, "
                "chmod go-w), or set TORCHP3_CACHE_DIR to another directory"
            )
        elif path.exists() or (folder.is_dir() and os.access(folder, os.W_OK)):
            return path
    return scratch() / name


@cache
def warn_once(message: str) -> None:
    """Warn once in a process. Python itself forgets what it has warned of when a program is compiled."""
    warnings.warn(message, RuntimeWarning, stacklevel=7)  # where `fit` is called


def make_private(folder: Path) -> None:
    """Make a directory, and the parents that it lacks, with mode 0700 whatever the umask. Raises `OSError`."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)  # another process may make it meanwhile


def why_unsafe(path: Path) -> str:
    """
    Why another user may have written what is at a path; "" if none can have, or if the system has no user ids.

    The path must belong to this user; if it is a link, its target must belong to this user, too. Root counts as another
    user. Neither the target's group nor all users may have permission to write it. A directory above the target may be
    writable by all users only if it has the sticky bit, as /tmp has; else anybody could replace what is in it. The
    owners of the directories above and the permissions of their groups are not checked.
    """
    if not hasattr(os, "getuid"):
        return ""
    there = path.resolve(strict=True)
    if {path.lstat().st_uid, there.stat().st_uid} != {os.getuid()}:
        return f"{path} belongs to another user"
    if there.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write to {path}"
    for parent in there.parents:
        if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            return f"all users can replace what is in {parent}"
    return ""


@cache
def scratch() -> Path:
    """For this process alone, where nothing can be kept."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def load(path: Path) -> Program:
    """The program in a file, once a process."""
    return Program(path)


def any_sizes(tensor: Tensor) -> dict[int, Any]:
    """For `torch.export`: a tensor of any sizes, but for those of 1, which broadcast."""
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if size != 1}


def compile_program(
    module: torch.nn.Module, arguments: tuple[Any, ...], sizes: tuple[Any, ...], options: Mapping[str, Any], path: Path
) -> None:
    """
    Compile a module for trees of tensors like these, of sizes as `torch.export` takes them, and put it in its place.

    Raises
    ------
    CompilerError
        There is no C++ compiler that works.
    """
    import torch._inductor  # the compiler, which takes a second to load
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    # That the compiler knows this processor is not tried beforehand, five compilations of a second each; that it has
    # read the headers before gains nothing.
    options = {"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False, **options}
    exported = torch.export.export(module, arguments, dynamic_shapes=sizes)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what PyTorch itself has deprecated
        try:
            get_cpp_compiler()  # or Inductor would write pages about the first part that it fails to compile
            package = torch._inductor.aoti_compile_and_package(
                exported, package_path=f"{folder}/program.pt2", inductor_configs=options
            )
        except (CppCompileError, InductorError, InvalidCxxCompiler) as error:
            reason = getattr(error, "inner_exception", error)
            if not isinstance(reason, (InvalidCxxCompiler, CppCompileError)):
                raise
            raise CompilerError(str(reason).partition("\n")[0]) from error
        os.chmod(package, 0o600)  # whatever the umask: the next process uses no program that others can write
        os.replace(package, path)
