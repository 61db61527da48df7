"""torchp3 and jaxp3 are mirror images: the same files, public names and signatures, but for what is listed here."""

import importlib
import inspect
import pkgutil

import pytest

import jaxp3
import torchp3

# What only one framework has, with the reason.
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
    ("jaxp3", "all_devices"): "one process has several; in PyTorch each has a process, or in data_parallel.py a thread",
    (
        "jaxp3",
        "on_each_device",
    ): "jax.shard_map is a transform; DistributedDataParallel wraps a module, of which is more",
    ("jaxp3", "sharded"): "jax.jit divides arrays among devices by itself; PyTorch has other functions for that",
    ("jaxp3", "patched_rules"): "a custom_vjp keeps its rule with itself; PyTorch's are methods, patched one by one",
    ("torchp3", "undamped"): "torch.optim.SGD knows its first step by a momentum of None; optax's trace adds to 0",
    ("torchp3", "name_values"): "torch.optim's rules take lists; optax's take any tree",
    ("jaxp3", "decayed"): "a transform of its own in optax; torch.optim's rules take weight_decay",
    ("jaxp3", "with_momentum"): "a transform of its own in optax; torch.optim's rules take momentum",
    ("jaxp3", "scale_by_adagrad"): "optax's has its epsilon inside the root",
    ("jaxp3", "one_cycle"): "optax's has its top at a whole step",
    ("jaxp3", "of_each_point"): "what sum_over_points sums",
    ("jaxp3", "sum_over_points"): "five sums in one loop, which Inductor makes of them by itself",
    ("torchp3", "Loop"): "torch.export takes modules; jax.jit takes functions",
    ("torchp3", "compile_loop"): "where a program is in a file already; jax.jit takes a fifth of a second to make one",
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
}
# Files that only one package has, with the reason.
FILES_ONLY_IN = {
    ("torchp3", "program"): "PyTorch's compiler takes seconds, so that programs are kept; JAX's does not",
    ("torchp3", "data_parallel"): "DistributedDataParallel takes a module and ranks; jax.shard_map takes a function",
}

PACKAGES = {"torchp3": torchp3, "jaxp3": jaxp3}


def modules_of(package):
    return sorted(module.name for module in pkgutil.iter_modules(PACKAGES[package].__path__))


MODULES = [name for name in modules_of("jaxp3") if name != "__main__"]


def defined_in(package, module_name):
    module = importlib.import_module(f"{package}.{module_name}")
    source = inspect.getsource(module)
    lines = {name: max(source.find(f"\ndef {name}("), source.find(f"\nclass {name}(")) for name in vars(module)}
    return {name: getattr(module, name) for name in sorted(lines, key=lines.__getitem__) if lines[name] >= 0}


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
def test_the_same_names_in_the_same_order_with_the_same_parameters(module):
    sides = {
        package: {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values()]
            for name, value in defined_in(package, module).items()
            if (package, name) not in ONLY_IN
        }
        for package in PACKAGES
    }
    assert list(sides["torchp3"].items()) == list(sides["jaxp3"].items())
    assert sides["torchp3"]


def test_what_is_listed_as_one_sided_is():
    defined = {package: {name for module in MODULES for name in defined_in(package, module)} for package in PACKAGES}
    for package, name in ONLY_IN:
        assert [where for where in PACKAGES if name in defined[where]] == [package]
