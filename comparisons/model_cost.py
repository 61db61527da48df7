"""
What a check of a model costs: in runs of the model forward and backward, and in memory.

The model is a GPT-2 of 12 layers and 9.8 million random parameters, of transformers, in both frameworks.
"""

import copy
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from comparisons.pages import ROOT, bounds, machine, seconds, write_part

LENGTH, VOCABULARY = 128, 1000  # tokens of an example
BATCHES = (4, 16)
REPEATS = 5
MIB = 2**10  # of the kibibytes that the operating system counts in


def sides(batch: int) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The module, the port as a function and its parameters, and the inputs."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import jax
    import torch
    from transformers import FlaxGPT2LMHeadModel, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=256, n_layer=12, n_head=8, vocab_size=VOCABULARY, n_positions=LENGTH, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with jax.enable_x64(True):
        port = FlaxGPT2LMHeadModel(config, dtype=jax.numpy.float64)
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (batch, LENGTH))
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    return GPT2LMHeadModel(config).eval(), (lambda parameters, **x: port(**x, params=parameters), port.params), inputs


def runs(batch: int) -> dict[str, Callable[[], object]]:
    """What is measured: each side forward and backward in float64, and the check."""
    import jax
    import torch

    import p3

    module, (function, parameters), inputs = sides(batch)
    double = copy.deepcopy(module).double()
    gradient = jax.jit(jax.grad(lambda parameters: (function(parameters, **inputs).logits ** 2).sum()))

    def by_torch() -> None:
        double.zero_grad()
        double(**{name: torch.from_numpy(x) for name, x in inputs.items()}).logits.square().sum().backward()

    def by_jax() -> None:
        with jax.enable_x64(True):
            jax.block_until_ready(gradient(jax.tree.map(lambda x: x.astype("float64"), parameters)))

    def by_check() -> None:
        p3.check_model(torch=module, jax=(function, parameters), inputs=inputs).assert_ok()

    return {"torch": by_torch, "jax": by_jax, "check": by_check}


def times(batch: int) -> dict[str, float]:
    """The median time of each, after one run that compiles."""
    found = {}
    for name, run in runs(batch).items():
        run()
        measured = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            measured.append(time.perf_counter() - start)
        found[name] = float(np.median(measured))
    return found


def memory(batch: int, name: str) -> float:
    """By how many MiB the process grows in the first run of one of them."""
    run = runs(batch)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MIB


def in_a_process(expression: str) -> Any:
    """What a function of this file gives in a process of its own."""
    program = f"import json, comparisons.model_cost as cost; print(json.dumps(cost.{expression}))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{expression} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table() -> str:
    """The part of the page."""
    import jax
    import torch

    begin, end = bounds("model_cost")
    lines = [
        begin,
        f"On {machine()}, {date.today()}, with torch {torch.__version__} and jax {jax.__version__}:",
        "",
        "| GPT-2, 12 layers | both sides once | the check | ratio | larger side | the check | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for batch in BATCHES:
        took = in_a_process(f"times({batch})")
        grew = {name: in_a_process(f"memory({batch}, {name!r})") for name in took}
        once, larger = took["torch"] + took["jax"], max(grew["torch"], grew["jax"])
        lines.append(
            f"| {batch} × {LENGTH} tokens | {seconds(once)} | {seconds(took['check'])} | {took['check'] / once:.1f} "
            f"| {larger:.0f} MiB | {grew['check']:.0f} MiB | {grew['check'] / larger:.1f} |"
        )
    return "\n".join([*lines, end])


@click.command()
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="The page to write the table into.")
def main(page: Path | None) -> None:
    """Measure what a check of a model costs, on a machine that does nothing else."""
    warnings.simplefilter("ignore")
    part = table()
    click.echo(part)
    if page is not None:
        write_part(page, part)


if __name__ == "__main__":
    main()
