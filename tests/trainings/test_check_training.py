"""What `p3.check_training` and `p3 check-training` take, say and leave as it is."""

import copy
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxp3
import p3
import torchp3
from tests.support.commands import call, run
from tests.support.trainings import (
    adam,
    clipped,
    jax_loss,
    mean_for_sum,
    mlp,
    net,
    regression,
    torch_loss,
    tree_of,
)

FEW = 4


def sides(**options):
    return mlp(adam(), **options)


def checked(torch, jax, count=FEW, **options):
    return p3.check_training(torch=torch, jax=jax, batches=list(regression(count)), **options)


def test_an_accepted_rule_hides_nothing_behind_it():
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2, eps=1e-6))
    both = mlp(clipped(optimizer), clip=0.1)
    assert checked(*both).first.quantity == "clipped gradient"
    report = checked(*both, accept=["clip_grad_norm_ 1e-6"])
    assert report.first.quantity == "update"
    assert report.findings[0].rule == "eps=1e-06"
    assert report.accepted[0].startswith("Accepted: clip_grad_norm_ 1e-6")


def test_two_causes_in_the_optimizer_are_told_apart():
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2, eps=1e-6))
    report = checked(*mlp(clipped(optimizer), clip=0.1))
    rules = [finding.rule for finding in report.findings if finding.kind == "semantic"]
    assert rules == ["clip_grad_norm_ 1e-6", "eps=1e-06"]


def test_a_bound_is_accepted_up_to_it():
    both = mlp(clipped(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))), clip=0.1)
    report = checked(*both, accept=[("clipped gradient", 1e-3)])
    assert report.ok, str(report)
    assert "Accepted: clipped gradient" in report.accepted[0]
    assert not checked(*both, accept=[("clipped gradient", 1e-9)]).ok


def test_batches_of_each_side_are_compared():
    torch_side, jax_side = sides()
    batches = list(regression(FEW))
    others = [(x, y) for x, y in batches]
    others[2] = (others[2][0], others[2][1] * 2)
    report = p3.check_training(torch=torch_side, jax=jax_side, batches={"torch": batches, "jax": others})
    assert (report.first.step, report.first.quantity, report.first.path) == (2, "data", "batch[1]")
    assert sum(finding.kind == "semantic" for finding in report.findings) == 1


def test_the_users_objects_stay_as_they_are():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    random = torch.random.get_rng_state()
    checked(
        torchp3.Training(model, torch_loss, optimizer, scheduler),
        jaxp3.Training(tree_of(model), jax_loss, optax.adamw(optax.cosine_decay_schedule(1e-2, 10), weight_decay=1e-2)),
    )
    after = model.state_dict(), optimizer.state_dict(), scheduler.state_dict()
    assert all(torch.equal(before[0][name], x) for name, x in after[0].items())
    assert before[1:] == after[1:]
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(x.grad is None for x in model.parameters())
    assert not jax.config.jax_enable_x64


def test_the_report_in_all_its_forms():
    report = checked(*sides(loss=mean_for_sum))
    assert not report.ok
    assert report.differences[0] == report.first
    text = str(report)
    assert text.splitlines()[1].startswith("First cause: step 0: the loss differs, semantic")
    read = json.loads(report.to_json())
    assert read["findings"][0]["quantity"] == "loss"
    assert "<svg" in report.to_html()
    with pytest.raises(AssertionError, match="The trainings differ"):
        report.assert_ok()


def test_a_test_for_each_quantity():
    torch_side, jax_side = sides(loss=mean_for_sum)
    test = p3.parity_test(torch=torch_side, jax=jax_side, batches=list(regression(FEW)))
    test("learning rate")
    with pytest.raises(AssertionError, match="loss"):
        test("loss")


def test_steps_could_not_have_shown_a_clipping_that_never_clips():
    optimizer = optax.chain(optax.clip_by_global_norm(1e3), optax.adam(1e-2))
    report = checked(*mlp(clipped(optimizer), clip=1e3), accept=["clip_grad_norm_ 1e-6"])
    assert report.ok
    assert "gradients are not clipped" in report.unshown


def nan_loss(p, batch):
    return jax_loss(p, batch) * jnp.nan


MODEL = net()
OPTIMIZER = torch.optim.Adam(MODEL.parameters(), 1e-2)
BAD = {
    "no batch": (lambda: checked(*sides(), count=0), "batches= has no batch"),
    "too few batches": (lambda: checked(*sides(), steps=9), r"batches= has 4 batches, and steps=9; give more"),
    "other numbers of batches": (
        lambda: p3.check_training(
            torch=sides()[0],
            jax=sides()[1],
            batches={"torch": list(regression(2)), "jax": list(regression(3))},
        ),
        "batches= of the reference end after 2",
    ),
    "no training": (lambda: checked(MODEL, sides()[1]), "torch= is Sequential; give a torchp3.Training"),
    "one side": (lambda: p3.check_training(torch=sides()[0], batches=[]), "1 of them given; give both"),
    "a loss that is no scalar in JAX": (
        lambda: checked(sides()[0], jaxp3.Training(tree_of(MODEL), lambda p, b: b[1].mean(0), optax.sgd(0.1))),
        r"the loss in JAX is an array of shape \(2,\); return a scalar",
    ),
    "a loss that is no scalar in PyTorch": (
        lambda: checked(torchp3.Training(MODEL, lambda m, b: m(b[0]), OPTIMIZER), sides()[1]),
        r"the loss in PyTorch is a tensor of shape \(16, 2\); return a scalar",
    ),
    "a loss that raises": (
        lambda: checked(sides()[0], jaxp3.Training(tree_of(MODEL), lambda p, b: p["no"], optax.sgd(0.1))),
        "the loss in JAX raises KeyError with the first batch",
    ),
    "a loss that draws": (
        lambda: checked(torchp3.Training(MODEL, lambda m, b: torch_loss(m, b) * torch.rand(()), OPTIMIZER), sides()[1]),
        "draws random numbers",
    ),
    "no number at step 0": (
        lambda: p3.check_training(
            jax=jaxp3.Training(tree_of(MODEL), nan_loss, optax.adam(1e-2)), torch=sides()[0], batches=regression(2)
        ),
        "finite number in it|loss is nan at step 0",
    ),
    "a parameter that is missing": (
        lambda: checked(
            sides()[0],
            jaxp3.Training(
                {**tree_of(MODEL), "layer3": {"weight": tree_of(MODEL)["layer3"]["weight"]}},
                lambda p, b: jax_loss({**p, "layer3": {**p["layer3"], "bias": jnp.zeros(2)}}, b),
                optax.adam(1e-2),
            ),
        ),
        "only PyTorch has 3.bias; give JAX the same parameters",
    ),
    "no optimizer of torch": (
        lambda: torchp3.Training(MODEL, torch_loss, optax.adam(1e-2)),
        "give an optimizer of torch.optim",
    ),
    "no optimizer of optax": (
        lambda: jaxp3.Training(tree_of(MODEL), jax_loss, "adam"),
        "optimizer= is str; give an optax transformation",
    ),
    "an optimizer that raises": (
        lambda: checked(sides()[0], jaxp3.Training(tree_of(MODEL), jax_loss, optax.masked(optax.sgd(0.1), [True]))),
        "optimizer.init raises ValueError with the parameters|optimizer.update raises",
    ),
    "parameters of another model": (
        lambda: torchp3.Training(net(), torch_loss, OPTIMIZER),
        "optimizer= has parameters that the model does not have",
    ),
    "an unknown rule": (
        lambda: checked(*sides(), accept=["clip_grad_norm"]),
        "accept= has 'clip_grad_norm', which is no known difference; the nearest are 'clip_grad_norm_ 1e-6'",
    ),
    "an unknown quantity": (lambda: checked(*sides(), accept=[("weights", 1.0)]), "with a quantity of parameter, data"),
    "steps that are none": (lambda: checked(*sides(), steps=0), "steps= is 0; give a number of steps"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_in_a_line(name):
    call, message = BAD[name]
    with pytest.raises(p3.InputError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


FILE = """
from tests.support.trainings import adam, mean_for_sum, mlp, regression

def torch_side():
    return mlp(adam())[0]

def jax_side():
    return mlp(adam())[1]

def wrong_side():
    return mlp(adam(), loss=mean_for_sum)[1]

def batches():
    return regression(3)
"""


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    right = run("p3", "check-training", "mine.py:torch_side", "mine.py:jax_side", "--batches", "mine.py:batches")
    assert right.returncode == 0, right.stderr
    assert "The trainings do the same: in each of 3 steps" in right.stdout
    wrong = run(
        "p3", "check-training", "mine.py:torch_side", "mine.py:wrong_side", "--batches", "mine.py:batches",
        "--report", "report.html",
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "First cause: step 0: the loss differs" in wrong.stdout
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    same = run("p3", "check-training", "mine.py:torch_side", "mine.py:torch_side", "--batches", "mine.py:batches")
    assert same.returncode == 2
    assert "give one of PyTorch and one of JAX" in same.stderr


def test_the_documents_show_what_comes_out():
    page = (Path(__file__).parents[2] / "docs" / "training_runs.md").read_text(encoding="utf-8")
    command = re.search(r"^p3 (check-training .*)$", page, re.MULTILINE)
    shown = re.search(r"```\n(The trainings differ.*?)```", page, re.DOTALL)
    finished = call("p3", *command[1].split(), cwd=Path(__file__).parents[2])
    assert finished.returncode == 1
    assert " ".join(shown[1].split()) in " ".join(finished.stdout.split())


def test_numbers_are_as_they_were():
    """The port runs by itself from the same start as the reference, and both losses begin alike."""
    report = checked(*sides())
    ours, theirs = report.trace.losses
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
