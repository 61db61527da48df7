"""The training loop: gradient descent on the model's coefficients, compiled or eager."""

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from os import PathLike
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from p3.errors import InputError
from p3.fitting.checkpoint import Checkpoint
from p3.fitting.data import make_shard
from p3.fitting.result import FitResult
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import (
    EAGERLY,
    Piece,
    Progress,
    Record,
    Steps,
    blank_steps,
    outset,
    piece_lengths,
    require_same,
    train,
)
from torchp3.fitting.device import describe_device, find_device
from torchp3.fitting.distributed import devices_here, gather, together, total, watched
from torchp3.fitting.model import Coefficients, loss
from torchp3.fitting.optimizer import State, initial_state, update
from torchp3.fitting.program import (
    LOCK,
    CompilerError,
    Program,
    any_sizes,
    compile_program,
    fingerprint,
    load,
    path_of,
    trace,
)
from torchp3.fitting.schedule import learning_rates

Carry = tuple[Coefficients, State]
# x and y of a device's points; and, where it shares points with others, how many of these are points, and, of batches,
# the number of the first.
Shard = dict[str, Tensor]
Step = Callable[[Carry, Shard, dict[str, Tensor]], tuple[Carry, dict[str, Tensor]]]


def loss_and_gradients(
    coefficients: Coefficients,
    x: Float[Tensor, "points"],
    y: Float[Tensor, "points"],
    own: Bool[Tensor, "points"] | None = None,
) -> tuple[Float[Tensor, ""], Coefficients]:
    """The loss, and its gradient with respect to each coefficient."""
    leaves = {name: coefficient.detach().requires_grad_() for name, coefficient in coefficients.items()}
    value = loss(leaves, x, y, own)
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def losses_and_gradients(
    coefficients: Coefficients,
    x: Float[Tensor, "points"],
    y: Float[Tensor, "points"],
    own: Bool[Tensor, "points"] | None = None,
) -> tuple[Float[Tensor, "fits"], Coefficients]:
    """The same of many fits at once; the gradient of the losses' sum, of which each depends on its own coefficients."""
    leaves = {name: coefficient.detach().requires_grad_() for name, coefficient in coefficients.items()}
    values = torch.func.vmap(loss, in_dims=(0, None, None, None))(leaves, x, y, own)
    return values.detach(), dict(zip(leaves, torch.autograd.grad(values.sum(), list(leaves.values())), strict=True))


def seen(
    shard: Shard, told: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "seen"], Float[Tensor, "seen"], Bool[Tensor, "seen"] | None]:
    """The points that a step sees, and which of them are the device's own, where not all are."""
    x, y = shard["x"], shard["y"]
    if "batch" not in told:
        return x, y, torch.arange(x.shape[0], device=x.device) < shard["count"] if "count" in shard else None
    if "first" not in shard:
        return x[told["batch"]], y[told["batch"]], None
    places = told["batch"] - shard["first"]
    own = (places >= 0) & (places < shard["count"])
    places = torch.where(own, places, 0)
    return x[places], y[places], own


def step(
    spec: TrainingSpec,
    carry: Carry,
    shard: Shard,
    told: dict[str, Tensor],
) -> tuple[Carry, dict[str, Tensor]]:
    """One step: the coefficients and the optimizer's state after it, and what is recorded of it, number by number."""
    coefficients, state = carry
    differentiate = losses_and_gradients if coefficients["a"].ndim else loss_and_gradients
    value, gradients = total(spec, *differentiate(coefficients, *seen(shard, told)))
    updated, state = update(spec.optimizer, coefficients, gradients, state, told["count"], told["learning_rate"])
    record = {"losses": value}
    if spec.trace:
        record |= {f"gradient {name}": gradients[name] for name in "abcd"}
        record |= {f"coefficient {name}": updated[name] for name in "abcd"}
    return (updated, state), record


def arrange(
    coefficients: Coefficients, steps: Mapping[str, Tensor], recorded: dict[str, Tensor]
) -> dict[str, Float[Tensor, "steps *coefficients"]]:
    """
    The record of some steps, from the coefficients before the first and what each step recorded.

    After the loop, which takes half as long again where it makes three vectors of these numbers itself.
    """
    if "gradient a" not in recorded:
        return recorded
    gradients, after = (
        torch.stack([recorded[f"{what} {name}"] for name in "abcd"], dim=1) for what in ("gradient", "coefficient")
    )
    before = torch.cat([torch.stack(list(coefficients.values()))[None], after])[:-1]
    return {
        "losses": recorded["losses"],
        "learning_rate": steps["learning_rate"].clone(),
        "coefficients": before,
        "gradients": gradients,
        "updates": after - before,
    }


def scan_steps(step: Step, carry: Carry, shard: Shard, steps: dict[str, Tensor]) -> tuple[Carry, dict[str, Tensor]]:
    """
    Some steps in a row: the coefficients and the optimizer's state after the last, and what is recorded of each.

    By the operation that PyTorch's `scan` itself calls, since that has Dynamo trace the step once more before: which
    takes seconds, and fails on sizes that it holds for any where it has traced other sizes before.
    """
    given, given_tree = tree_flatten((carry, steps, shard))
    result_tree = None

    def body(*leaves: Tensor) -> list[Tensor]:
        nonlocal result_tree
        carry, told, shard = tree_unflatten(leaves, given_tree)
        results, result_tree = tree_flatten(step(carry, shard, told))
        return [result.clone() for result in results]  # scan refuses what may be a view

    first, last = len(tree_leaves(carry)), len(tree_leaves((carry, steps)))
    results = scan_op(body, given[:first], given[first:last], given[last:])
    assert result_tree is not None
    after, recorded = tree_unflatten(results, result_tree)
    return after, arrange(carry[0], steps, recorded)


class Loop(torch.nn.Module):
    """`scan_steps` as a module, which is what `torch.export` takes."""

    def __init__(self, step: Step) -> None:
        """Of this step."""
        super().__init__()
        self.step = step

    def forward(self, carry: Carry, shard: Shard, steps: dict[str, Tensor]) -> tuple[Carry, dict[str, Tensor]]:
        """The steps."""
        return scan_steps(self.step, carry, shard, steps)


def compile_loop(spec: TrainingSpec, carry: Carry, shard: Shard, length: int) -> Program:
    """
    The loop of so many steps as one program, of which 1 step is another than any more; compiled if it never was.

    Another one too of more than 4096 points, of which Inductor adds up the sums of parts, as float32's rounding needs.

    No array of the points is kept between the sums: to allocate one takes longer than to compute it twice. Two threads
    that wait for each other at each step take longer than one, and far longer where they share a core. Multiplications
    are fused with additions, as JAX's compiler does, which leaves out roundings, and a quarter of the time.
    """
    points = spec.batch_size or len(shard["x"])
    numbers = carry[0]["a"].numel() * points
    whole = 1000  # more operations, and more readers, than any expression here has
    options = {
        "cpp.enable_floating_point_contract_flag": "fast",
        "cpp.threads": 1 if numbers < 2**14 else torch.get_num_threads(),
        "realize_opcount_threshold": whole,
        "realize_reads_threshold": whole,
        "realize_acc_reads_threshold": whole,
    }
    device = shard["x"].device
    steps = {name: torch.as_tensor(values, device=device) for name, values in blank_steps(spec, length).items()}
    one = carry, shard, {name: values[0] for name, values in steps.items()}
    this_step = partial(step, spec)
    source = Path(__file__).read_text(encoding="utf-8")
    about = length, carry[0]["a"].shape, points > 4096, options, describe_device(device), source
    with LOCK:
        path = path_of(f"{fingerprint(this_step, one, about)}.pt2")
        with suppress(RuntimeError):  # there is none, or it is not whole
            return load(path)
    with LOCK, FileLock(f"{path}.lock"):  # of processes that need the same program one compiles it
        with suppress(RuntimeError):
            return load(path)
        # scan has outputs of any length, but not of any width: a program is for so many fits.
        sizes = tree_map(lambda values: None, carry), *tree_map(any_sizes, (shard, steps))
        compile_program(Loop(trace(this_step, one)), (carry, shard, steps), sizes, options, path)
        return load(path)


def compile_piece(spec: TrainingSpec, carry: Carry, shard: Shard) -> Piece[Carry] | None:
    """The loop of a piece as one compiled program, or None, and a warning, where PyTorch cannot compile."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        warnings.warn(f"{EAGERLY}: TORCH_COMPILE_DISABLE is set", RuntimeWarning, stacklevel=4)
        return None
    try:
        loops = {
            length: compile_loop(spec, carry, shard, length)
            for length in {min(length, 2) for length in piece_lengths(spec)}
        }
    except CompilerError as error:
        warnings.warn(f"{EAGERLY}: {error}", RuntimeWarning, stacklevel=4)
        return None

    def piece(carry: Carry, steps: Steps) -> tuple[Carry, Record]:
        told = {name: torch.as_tensor(values, device=shard["x"].device) for name, values in steps.items()}
        carry, record = loops[min(len(steps["count"]), 2)](carry, shard, told)
        return carry, {name: values.cpu().numpy() for name, values in record.items()}

    return piece


def eager_piece(step: Step, shard: Shard, carry: Carry, steps: Steps) -> tuple[Carry, Record]:
    """The same loop in Python, one operation at a time."""
    told = {name: torch.as_tensor(values, device=shard["x"].device) for name, values in steps.items()}
    before, records = carry[0], []
    for of_step in zip(*told.values(), strict=True):
        carry, record = step(carry, shard, dict(zip(told, of_step, strict=True)))
        records.append(torch.stack(list(record.values())))  # many small objects would keep the garbage collector busy
    recorded = dict(zip(record, torch.stack(records).unbind(1), strict=True))
    record = arrange(before, told, recorded)
    return carry, {name: values.cpu().numpy() for name, values in record.items()}


def make_piece(spec: TrainingSpec, carry: Carry, shard: Shard) -> tuple[Piece[Carry], bool, float]:
    """The loop of a piece, whether it is compiled, and the seconds that it took to compile, or to load libraries."""
    begin = perf_counter()
    piece = compile_piece(spec, carry, shard) if spec.jit else None
    compiled = piece is not None
    if len(set(gather(spec, compiled))) > 1:  # they would be a collective apart, by the step thrown away
        raise InputError(
            "of the processes some compile the loop and some cannot; have all compile, or give jit = false"
        )
    if piece is None:
        piece = partial(eager_piece, partial(step, spec), shard)
        piece(carry, blank_steps(spec, 1))  # a step thrown away, on which libraries load
    return piece, compiled, perf_counter() - begin


def to_floats(carry: Carry) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The coefficients and the optimizer's state as numbers."""
    coefficients, state = tree_map(float, carry)
    return coefficients, state


def place(spec: TrainingSpec) -> Shard:
    """The points on the device; where devices share them, the part of this process's device."""
    device = find_device(spec.device)
    (number,) = devices_here(spec)
    return {name: torch.as_tensor(values, device=device) for name, values in make_shard(spec, number).items()}


def place_coefficients(
    spec: TrainingSpec, coefficients: Mapping[str, float | Float64[np.ndarray, "fits"]]
) -> Coefficients:
    """The coefficients on the device."""
    dtype, device = getattr(torch, spec.dtype), find_device(spec.device)
    return {name: torch.tensor(value, dtype=dtype, device=device) for name, value in coefficients.items()}


def fit(
    spec: TrainingSpec, progress: Progress | None = None, checkpoint: str | PathLike[str] | Checkpoint | None = None
) -> FitResult:
    """
    Fit the specification with PyTorch and torch.optim.

    Parameters
    ----------
    spec : what to fit
    progress : called as progress(step, loss) each log_every steps, and at the last
    checkpoint : a new directory to save each of these pieces in; or a `Checkpoint`, of a run that goes on if it is to

    Where devices share the points, each of their processes calls this alike, with directories that all of them see, and
    has the same result; the first one alone saves.

    Raises
    ------
    InputError
        The points are not finite in the specification's dtype; there is no such device, or not as many; or the
        checkpoint is of another specification, or not whole.
    DivergenceError
        A loss or a coefficient is not finite.
    LostProcessError
        Of several processes one has ended, or has not answered for as long as they were told to wait when they were
        connected; the commands tell them `p3.fitting.training.PATIENCE` seconds.

    Warns
    -----
    RuntimeWarning
        `jit = true`, and TORCH_COMPILE_DISABLE is set, or there is no C++ compiler that works: the fit runs eagerly.
    """
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    device = find_device(spec.device)
    # Gradients are on for this fit alone, whatever the caller has switched off.
    with watched(spec), torch.inference_mode(False), torch.enable_grad():
        saved = together(spec, lambda: checkpoint.read(spec) if checkpoint is not None else None)
        require_same(gather(spec, together(spec, lambda: outset(spec, checkpoint, saved))))
        here = devices_here(spec)
        shard = together(spec, lambda: place(spec))
        written = checkpoint if 0 in here else None  # by one process
        together(spec, lambda: written.begin(spec) if written is not None else None)
        start = place_coefficients(spec, spec.start.model_dump())
        carry = start, initial_state(spec.optimizer, start)
        if saved is not None:
            state = {name: place_coefficients(spec, values) for name, values in saved.state.items()}
            carry = place_coefficients(spec, saved.coefficients), state
        piece, compiled, compile_seconds = make_piece(spec, carry, shard)
        trained = train(spec, piece, carry, learning_rates(spec), to_floats, progress, written, saved)
    return FitResult(
        backend="torch",
        spec=spec,
        device=describe_device(device),
        compiled=compiled,
        coefficients=trained.coefficients,
        losses=trained.record["losses"],
        traces=trained.traces,
        seconds={"compile": compile_seconds, "run": trained.seconds},
        versions={"torch": torch.__version__},
    )
