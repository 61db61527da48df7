"""torchp3 and jaxp3 are mirror images: the same files, names, members and signatures, but for what is listed here."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import jaxp3
import torchp3

# What only one framework has, with the reason; a member of a class as Class.member.
ONLY_IN = {
    ("torchp3", "LegendrePolynomial3"): "PyTorch's custom gradient is a class; JAX's is legendre_p3 itself",
    ("jaxp3", "forward"): "a method of LegendrePolynomial3 in PyTorch",
    ("jaxp3", "backward"): "a method of LegendrePolynomial3 in PyTorch",
    ("jaxp3", "jvp"): "a method of LegendrePolynomial3 in PyTorch",
    ("jaxp3", "pushforward"): "what jvp does to the tangent, apart so that jax.checkpoint can wrap it",
    ("torchp3", "apply"): "what torch.compile is told to leave whole; jax.jit keeps every rule",
    ("torchp3", "keep_apply_whole"): "tells torch.compile so",
    ("jaxp3", "ReverseModeOnly"): "a custom_vjp refuses forward mode, and this one names legendre_p3_custom_jvp",
    ("jaxp3", "legendre_p3_custom_jvp"): "a custom_vjp has no forward mode; an autograd.Function has both",
    ("torchp3", "pull_back"): "jax.vjp gives zeros where nothing depends on an argument; torch.autograd.grad raises",
    ("torchp3", "conjugate"): "PyTorch's complex gradients are conjugates of JAX's, which are the transpose's",
    ("torchp3", "tangent_of"): "jax.jvp gives zeros where nothing depends on an argument; unpack_dual gives None",
    ("jaxp3", "custom_functions"): "found in a jaxpr; PyTorch's are found in autograd's graph, by the operator",
    ("torchp3", "graph_of"): "autograd's graph is of objects, and a jaxpr of equations that hold other jaxprs",
    ("torchp3", "ArrayFunction.functional"): "PyTorch differentiates by torch.func or by autograd; JAX has one way",
    ("torchp3", "functional_vjp_of"): "PyTorch differentiates by autograd or by torch.func; JAX has one way",
    ("torchp3", "functional_jvp_of"): "PyTorch differentiates by dual numbers or by torch.func; JAX has one way",
    ("torchp3", "ArrayFunction.functions"): "autograd's graph has the rules; JAX's are found as they are called",
    ("torchp3", "SETTINGS"): "JAX has its settings in one place, jax.config",
    ("jaxp3", "ArrayFunction.quick"): "jax.jit takes milliseconds, and torch.compile seconds",
    ("jaxp3", "ArrayFunction.is_quick"): "says whether value calls a program that is kept",
    ("jaxp3", "ArrayFunction.text"): "says what it is a program of",
    ("jaxp3", "ArrayFunction.traced"): "says what it is a program of",
    ("jaxp3", "QUICKLY"): "has XLA compile in little time, and round half precision as each operation does alone",
    ("jaxp3", "PROGRAMS"): "how many such programs are kept",
    ("jaxp3", "program"): "keeps them",
    ("jaxp3", "is_hashable"): "says which can be kept",
    ("jaxp3", "ArrayFunction.is_sharded"): "says whether run calls sharded",
    ("jaxp3", "ArrayFunction.wide"): "JAX has float64 only where 64-bit types are on; PyTorch always has it",
    ("jaxp3", "JAX_ITSELF"): "JAX's own functions have custom rules too; the derivatives of PyTorch's own are in C++",
    ("torchp3", "RULES"): "an autograd.Function has several rules to scale, a custom_vjp or custom_jvp has one",
    ("torchp3", "Scaling"): "sets SCALED, and has torch.compile compile anew, as set_xla_metadata has jax.jit",
    (
        "torchp3",
        "CHANGED",
    ): "what PyTorch says where dual numbers cannot be gone back through; JAX has one forward mode",
    ("torchp3", "refuse_once_differentiable"): "torch.autograd.grad gives None where JAX raises",
    ("torchp3", "FORWARD_MODE"): "PyTorch has one level of forward mode for all threads; JAX's tangents are in tracers",
    ("torchp3", "ArrayFunction.ignores_labels"): "JAX has no loss that ignores labels",
    ("torchp3", "ArrayFunction.variants"): "runs it by the conventions of conventions.py",
    ("torchp3", "PATIENCE"): "how long to wait for it",
    ("torchp3", "forward_mode"): "waits for it",
    ("torchp3", "compile_apart"): "Dynamo keeps what it compiles with a function's code; jax.jit does not",
    (
        "torchp3",
        "forget_compiled",
    ): "what JAX traced with scaled rules is found under that alone; Dynamo keeps it with f",
    (
        "jaxp3",
        "call_scaled",
    ): "a custom_vjp is an object, and a copy of it is scaled; PyTorch's rules are methods",
    (
        "jaxp3",
        "scaled_jvp",
    ): "a custom_jvp's rule gives the primal output too; PyTorch's jvp the tangent alone",
    ("torchp3", "undamped"): "torch.optim.SGD knows its first step by a momentum of None; optax's trace adds to 0",
    ("torchp3", "name_values"): "torch.optim's rules take lists; optax's take any tree",
    ("jaxp3", "decayed"): "a transform of its own in optax; torch.optim's rules take weight_decay",
    ("jaxp3", "with_momentum"): "a transform of its own in optax; torch.optim's rules take momentum",
    ("jaxp3", "scale_by_adagrad"): "optax's has its epsilon inside the root",
    ("jaxp3", "one_cycle"): "optax's has its top at a whole step",
    ("jaxp3", "BLOCK"): "XLA adds all the points in a row; Inductor adds up the sums of parts by itself",
    ("jaxp3", "COMPILER_OPTIONS"): "XLA's options are always the same; Inductor's depend on the sizes, in compile_loop",
    ("jaxp3", "of_each_point"): "what sum_over_points sums",
    ("jaxp3", "sum_over_points"): "five sums in one loop, which Inductor makes of them by itself",
    ("torchp3", "Loop"): "torch.export takes modules; jax.jit takes functions",
    ("torchp3", "compile_loop"): "where a program is in a file already; jax.jit takes a fifth of a second to make one",
    ("jaxp3", "AXIS"): "the name of the mesh's axis",
    ("jaxp3", "SHARED"): "how an array lies on the mesh",
    ("jaxp3", "REPLICATED"): "how an array lies on the mesh",
    ("jaxp3", "MOST_DEVICES"): "a process of PyTorch's has one device",
    ("jaxp3", "mesh"): "a process of JAX's can have several devices, and PyTorch's has one",
    ("jaxp3", "lay_out"): "a JAX array lies on all devices, of which a tensor of PyTorch's is one's part",
    ("jaxp3", "replicate"): "a tensor of PyTorch's is its process's own",
    ("jaxp3", "on_each"): "what a process of PyTorch's runs anyway",
    (
        "jaxp3",
        "apart",
    ): "jax.grad sums over devices by itself what they have in common; torch.autograd knows of no other",
    ("torchp3", "part"): "what jax.distributed.shutdown does by itself",
    ("jaxp3", "make_devices"): "a process of PyTorch's has one",
    ("jaxp3", "meet"): "what PyTorch's collectives do that give up after a time; JAX's wait for ever",
    ("jaxp3", "leave"): "JAX waits for the others where a process fails, and aborts it; PyTorch raises",
    ("torchp3", "Replaceable"): "an autograd.Function is a class; a custom_vjp is the function itself",
    ("jaxp3", "replaceable"): "a class, Replaceable, in PyTorch",
    ("jaxp3", "shown"): "an operation that sees a whole batch; PyTorch's functions see whole batches anyway",
    ("jaxp3", "IS_TRACED"): "JAX traces a model's Python code; PyTorch runs it",
    ("jaxp3", "in_each_run"): "keeps what is traced from being computed at once",
    ("jaxp3", "See"): "the functions that it calls",
    ("jaxp3", "run_now"): "what the operation does",
    ("jaxp3", "array_of"): "what it returns beside",
    ("jaxp3", "shapes_of_result"): "what it returns",
    ("jaxp3", "run_batch"): "what it does under vmap",
    ("torchp3", "DROPOUTS"): "what draws masks in PyTorch; in JAX it is bernoulli",
    ("torchp3", "MasksSeen"): "a TorchFunctionMode sees the calls of PyTorch's functions",
    ("jaxp3", "DRAWING"): "the lock of DRAWERS",
    ("jaxp3", "DRAWERS"): "JAX has no such mode, and bernoulli is replaced while a tape sees what it draws",
    ("jaxp3", "BERNOULLI"): "what it is replaced by afterwards",
    ("jaxp3", "bernoulli"): "what it is replaced by",
    ("torchp3", "ArrayModule.conventions"): "runs it by the conventions of conventions.py",
    ("torchp3", "kind_of"): "the classes of layers in JAX are in libraries.py",
    ("torchp3", "watch"): "a module has hooks; the libraries that JAX has are watched in libraries.py",
    ("jaxp3", "ArrayModule.ways"): "a torch.nn.Module takes batches; equinox's layers take one example",
    ("jaxp3", "made"): "JAX's arrays are made anew; PyTorch's are written into",
    ("jaxp3", "ArrayModule.traces"): "what ArrayModule.traced has traced",
    ("jaxp3", "ArrayModule.met"): "the layers that it met",
    ("jaxp3", "ArrayModule.traced"): "JAX traces a model's Python code; PyTorch runs it",
    ("jaxp3", "COMPILED"): "operations that are not run one by one",
    ("jaxp3", "compiles_taps"): "looks for them",
    ("jaxp3", "inner_jaxprs"): "what is in them",
    ("jaxp3", "evaluate"): "runs what was traced",
    ("jaxp3", "pulled_back"): "what is traced",
    ("jaxp3", "numpy_of"): "PyTorch's arrays are copied, since modules change them",
    ("torchp3", "SEED"): "PyTorch's random state is set; in JAX it is in libraries.py",
    ("torchp3", "Clip"): "what clips in PyTorch; in optax it is a part of the optimizer",
    ("torchp3", "Training.model"): "holds the parameters and the running statistics",
    ("torchp3", "Training.scheduler"): "a part of the optimizer in optax",
    ("torchp3", "Training.clip"): "a part of the optimizer in optax",
    ("torchp3", "Training.accumulate"): "a part of the optimizer in optax",
    ("torchp3", "Training.rules"): "PyTorch's optimizers have options that can be changed; optax's are closures",
    ("jaxp3", "Training.parameters"): "a model in PyTorch",
    ("jaxp3", "Training.state"): "in the model in PyTorch",
    ("jaxp3", "Training.library"): "JAX has several libraries of layers, and PyTorch has one",
    ("jaxp3", "RANDOM"): "JAX's operations are looked at; PyTorch's random state shows that it was used",
    ("jaxp3", "draws"): "looks at them",
    ("jaxp3", "Run.wide"): "JAX has float64 only where 64-bit types are on; PyTorch always has it",
    ("jaxp3", "Run.tree"): "optax takes the user's tree",
    ("jaxp3", "Run.flat"): "the other way round",
    ("jaxp3", "Run.computed"): "what is compiled of a step",
    ("jaxp3", "Run.updated"): "what is compiled of a step",
    ("jaxp3", "Run.stepped"): "what is compiled of a step",
    ("jaxp3", "Run.arrays"): "what a compiled function takes of a batch",
    ("jaxp3", "Run.whole"): "optax takes a gradient of each parameter, of 0 where there is none",
    ("torchp3", "Run.batch"): "the same as tensors",
    ("torchp3", "Run.put"): "writes .grad",
    ("jaxp3", "Run.remembered"): "the leaves of optax's state",
    ("jaxp3", "Run.role"): "what such a leaf is",
    ("jaxp3", "cast"): "JAX's arrays are made anew; a module is cast as a whole",
    ("torchp3", "Run.back"): "the gradients are left in .grad; jax.value_and_grad returns them",
    ("torchp3", "Run.gradients"): "reads .grad",
    ("torchp3", "Run.takes"): "micro-batches are counted here; in optax by MultiSteps",
    ("torchp3", "Run.sum"): "a rule for these",
    ("torchp3", "Run.clip"): "a part of the optimizer in optax",
    ("torchp3", "Run.advance"): "the optimizer and the scheduler; one in optax",
    ("torchp3", "Run.cloned"): "PyTorch's optimizers change their state in place",
    ("torchp3", "Run.held"): "PyTorch's optimizers begin without a state",
    ("torchp3", "Regrouped"): "PyTorch's optimizers have groups of parameters",
    ("torchp3", "track"): "a scheduler of PyTorch's watches its optimizer",
}
# Files that only one package has, with the reason.
FILES_ONLY_IN = {
    ("torchp3", "fitting/program"): "PyTorch's compiler takes seconds, so that programs are kept; JAX's does not",
    (
        "torchp3",
        "conventions",
    ): "a TorchFunctionMode sees the calls of PyTorch's functions; JAX's are traced to operations",
    ("torchp3", "rules"): "PyTorch's optimizers have options that can be changed; optax's are closures",
    ("jaxp3", "stages"): "what such closures hold",
    ("jaxp3", "libraries"): "JAX has several libraries of layers, and PyTorch has one",
    ("torchp3", "confusions"): "more conventions, of models",
    ("torchp3", "data_parallel"): "DistributedDataParallel takes a module, and each rank has a thread here",
    ("jaxp3", "sharding"): "jax.shard_map is a transform of a function, and one process has several devices",
}
# What both have with different parameters, types or decorators, with the reason.
DIFFERS = {
    "ArrayFunction.scaled_rules": "PyTorch's rules are found in the graph of some inputs, JAX's as they are called",
    "scalable": "PyTorch's rules are replaced one by one; JAX's are scaled where they are called",
    "multiplied": "the rules of an autograd.Function are static methods",
    "ArrayModule.model": "a torch.nn.Module, or a model of one of JAX's libraries",
    "ArrayModule.is_torch": "which of the two it is",
    "watched": "the backward pass of PyTorch may be in another thread, where the tape is not known by context",
    "Training.is_torch": "which of the two it is",
    "Training.optimizer": "of torch.optim or of optax",
    "clip": "torch.optim's rules take lists; optax's take any tree",
}
# PyTorch's words in names and annotations, and JAX's for the same.
WORDS = {
    "Tensor": "Array",
    "Tensors": "JaxArrays",
    "lr_scheduler.LRScheduler": "optax.Schedule",
    "torch.device": "jax.Device",
}

PACKAGES = {"torchp3": torchp3, "jaxp3": jaxp3}


def folder_of(package: str) -> Path:
    return Path(PACKAGES[package].__file__).parent


def modules_of(package: str) -> list[str]:
    folder = folder_of(package)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py"))


MODULES = [name for name in modules_of("jaxp3") if ("jaxp3", name) not in FILES_ONLY_IN]


def statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """The statements of a module or a class, and those under its `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from statements(getattr(node, block, []))
        else:
            yield node


def definitions(body: Sequence[ast.AST], owner: str = "") -> Iterator[tuple[str, list[str], str]]:
    """
    What a module defines, in its order: the name, the decorators, and what else must be the same in both packages.

    Those are a function's parameters and types, a class's bases, and a field's type and default. The members of a
    class come after it. Of a module's constants only the names are compared, since their values are the framework's.
    """
    for node in statements(body):
        decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            returns = node.returns and ast.unparse(node.returns)
            yield owner + node.name, decorators, f"({ast.unparse(node.args)}) -> {returns}"
        elif isinstance(node, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
            yield owner + node.name, decorators, f"class({bases})"
            yield from definitions(node.body, f"{owner}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield owner + part.id, [], ast.unparse(node) if owner else "constant"


def names_of(source: str) -> list[str]:
    return [name for name, _, _ in definitions(ast.parse(source).body)]


def mirrored(package: str, source: str) -> list[tuple[str, str]]:
    """What the other package must have too, in the same order: each name with what it is, in JAX's words."""
    only = {name for where, name in ONLY_IN if where == package}
    words = WORDS if package == "torchp3" else {}

    def in_jax(text: str) -> str:
        return re.sub(r"[\w.]+", lambda word: words.get(word[0], word[0]), text)

    return [
        (in_jax(name), in_jax(" ".join([*(f"@{each}" for each in decorators if each not in only), what])))
        for name, decorators, what in definitions(ast.parse(source).body)
        if only.isdisjoint({name, name.partition(".")[0]})
    ]


def source_of(package: str, module: str) -> str:
    return (folder_of(package) / f"{module}.py").read_text(encoding="utf-8")


def test_the_same_files():
    sides = {
        package: [name for name in modules_of(package) if (package, name) not in FILES_ONLY_IN] for package in PACKAGES
    }
    assert sides["torchp3"] == sides["jaxp3"]
    for package, name in FILES_ONLY_IN:
        assert [where for where in PACKAGES if name in modules_of(where)] == [package]


def test_the_same_public_names():
    only = {package: {name for where, name in ONLY_IN if where == package} for package in PACKAGES}
    assert set(torchp3.__all__) - only["torchp3"] == set(jaxp3.__all__) - only["jaxp3"]


@pytest.mark.parametrize("module", MODULES)
def test_the_same_definitions_in_the_same_order(module):
    sides = {
        package: [(name, name in DIFFERS or what) for name, what in mirrored(package, source_of(package, module))]
        for package in PACKAGES
    }
    assert sides["torchp3"] == sides["jaxp3"]
    assert sides["torchp3"] or module.endswith("__main__")


def test_what_is_listed_as_one_sided_is():
    defined = {
        package: {name for module in MODULES for name in names_of(source_of(package, module))} for package in PACKAGES
    }
    for package, name in ONLY_IN:
        assert [where for where in PACKAGES if name in defined[where]] == [package]


def test_what_is_listed_as_different_is():
    sides = {
        package: dict(pair for module in MODULES for pair in mirrored(package, source_of(package, module)))
        for package in PACKAGES
    }
    for name in DIFFERS:
        assert sides["torchp3"][name] != sides["jaxp3"][name], name


# --- that the comparison can fail

SOURCE = """
LIMIT = 3

def scaled(x: Tensor, *, factor: float = 1.0) -> Tensor: ...

class Plain:
    size: int = 2
    name: str = ""

    def run(self, x, times=1): ...

    @property
    def area(self): ...

class Derived(Plain): ...

class Last: ...
"""
# A change of the source, and the names that are then not the same in both: none where only the order has changed.
CHANGES = {
    "a class without bases": ("class Derived", "class Extra: ...\n\nclass Derived", {"Extra"}),
    "a class with bases": ("class Derived", "class Extra(Plain): ...\n\nclass Derived", {"Extra"}),
    "a generic class": ("class Derived", "class Extra(Generic[T]): ...\n\nclass Derived", {"Extra"}),
    "a class within a class": ("    size", "    class Extra: ...\n    size", {"Plain.Extra"}),
    "a decorated class": ("class Plain", "@dataclass(frozen=True)\nclass Plain", {"Plain"}),
    "a base": ("class Derived(Plain)", "class Derived", {"Derived"}),
    "a method": ("    def run", "    def walk(self): ...\n\n    def run", {"Plain.walk"}),
    "a method's parameter": ("x, times", "y, times", {"Plain.run"}),
    "a method's default": ("times=1", "times=2", {"Plain.run"}),
    "the kind of a parameter": ("times=1", "*, times=1", {"Plain.run"}),
    "a property": ("    @property\n", "", {"Plain.area"}),
    "a static method": ("    def run", "    @staticmethod\n    def run", {"Plain.run"}),
    "a field": ("    name", "    unit: str = ''\n    name", {"Plain.unit"}),
    "a field without an annotation": ("    name", "    unit = ''\n    name", {"Plain.unit"}),
    "a field's default": ("size: int = 2", "size: int = 3", {"Plain.size"}),
    "a field's type": ("size: int", "size: float", {"Plain.size"}),
    "the order of fields": ('    size: int = 2\n    name: str = ""', '    name: str = ""\n    size: int = 2', set()),
    "the order of classes": (
        "class Derived(Plain): ...\n\nclass Last: ...",
        "class Last: ...\n\nclass Derived(Plain): ...",
        set(),
    ),
    "a function": ("def scaled", "def extra(): ...\n\ndef scaled", {"extra"}),
    "a coroutine": ("def scaled", "async def extra(): ...\n\ndef scaled", {"extra"}),
    "a decorated function": ("def scaled", "@cache\ndef scaled", {"scaled"}),
    "a function under an if": ("def scaled", "if LIMIT:\n    def extra(): ...\n\ndef scaled", {"extra"}),
    "a function's default": ("factor: float = 1.0", "factor: float = 2.0", {"scaled"}),
    "a parameter's type": ("factor: float", "factor: int", {"scaled"}),
    "what a function returns": ("-> Tensor", "-> None", {"scaled"}),
    "a constant": ("LIMIT = 3", "LIMIT = 3\nEXTRA, OTHER = 4, 5", {"EXTRA", "OTHER"}),
}


def test_the_same_in_the_other_frameworks_words_is_no_difference():
    assert mirrored("torchp3", SOURCE) == mirrored("jaxp3", SOURCE.replace("Tensor", "Array"))
    assert mirrored("torchp3", SOURCE) != mirrored("jaxp3", SOURCE)


@pytest.mark.parametrize(("old", "new", "names"), CHANGES.values(), ids=CHANGES)
def test_a_difference_is_seen(old, new, names):
    assert SOURCE.count(old) == 1
    before, after = mirrored("torchp3", SOURCE), mirrored("jaxp3", SOURCE.replace(old, new).replace("Tensor", "Array"))
    assert before != after
    assert {name for name, _ in set(before) ^ set(after)} == names
