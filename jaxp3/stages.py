"""
The stages of an optax transformation: what it is chained of, as far as optax's own combinators show it.

An optax transformation is a pair of functions. Those that optax's combinators make hold the transformations that they
combine in their closures, so that the gradients after clipping and the learning rate can be read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Update = Callable[..., tuple[Any, Any]]

CLIPS = ("clip", "clip_by_global_norm", "clip_by_block_rms", "adaptive_grad_clip", "unitwise_clip", "zero_nans")
SCALES = ("scale", "scale_by_schedule", "scale_by_learning_rate")
LINEAR = (*CLIPS, *SCALES, "identity", "trace", "ema", "add_decayed_weights")  # the learning rate may come before these
INJECTED = ("inject_hyperparams", "inject_stateful_hyperparams")


def made_by(update: Update) -> tuple[str, dict[str, Any]]:
    """The function of optax that made an update function, and the variables of its closure; "" where it is another."""
    function = getattr(update, "__func__", update)
    if not str(getattr(function, "__module__", "")).startswith("optax"):
        return "", {}
    if hasattr(update, "__self__"):  # optax.MultiSteps
        return type(update.__self__).__name__, {"opt": getattr(update.__self__, "inner_opt", None)}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return function.__qualname__.split(".<locals>")[0], {name: cell.cell_contents for name, cell in cells}


def clips(update: Update) -> bool:
    """Whether something in a transformation clips gradients or adds them up, or may do so."""
    name, cells = made_by(update)
    inner = inner_of(name, cells)
    return not name or name in (*CLIPS, *INJECTED, "MultiSteps") or any(map(clips, inner))


def inner_of(name: str, cells: Mapping[str, Any]) -> tuple[Update, ...]:
    """The update functions that a transformation is made of."""
    if name in ("chain", "named_chain"):
        return tuple(cells.get("update_fns", ()))
    if name == "partition":
        return tuple(transform.update for transform in cells["transforms"].values())
    return tuple(cells[key].update for key in ("tx", "inner", "opt") if hasattr(cells.get(key), "update"))


class Stages:
    """
    An update that is seen from inside.

    Attributes
    ----------
    clipped : the gradients after those stages at the beginning that clip; None where clipping cannot be told apart
    given : what the other stages continue with instead, where it is not None
    """

    def __init__(self, given: Any = None) -> None:
        """Nothing has run."""
        self.given = given
        self.clipped: Any = None
        self.is_beginning = True

    def run(self, update: Update, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The update, one stage after another."""
        name, cells = made_by(update)
        if name == "with_extra_args_support":
            return self.run(cells["tx"].update, updates, state, params)
        if name == "chain":
            after = []
            for stage, own in zip(cells["update_fns"], state, strict=True):
                updates, new = self.run(stage, updates, own, params)
                after.append(new)
            return updates, tuple(after)
        if self.is_beginning and name not in (*CLIPS, "identity"):
            self.is_beginning = False
            if not clips(update):
                self.clipped = updates
                updates = updates if self.given is None else self.given
        return update(updates, state, params)


def rates(update: Update, state: Any, params: Any) -> Any:
    """
    The learning rate by which a transformation scales each parameter's update, as a tree.

    The leaves of parameters that it scales by none are 1. It is None where none can be told.
    """
    name, cells = made_by(update)
    ones = jax.tree.map(lambda _: jnp.ones(()), params)
    if name == "with_extra_args_support":
        return rates(cells["tx"].update, state, params)
    if name == "chain":
        found, is_known = ones, False
        for stage, own in zip(cells["update_fns"], state, strict=True):
            here = rates(stage, own, params)
            if here is not None:
                found, is_known = jax.tree.map(jnp.multiply, found, here), True
            elif made_by(stage)[0] not in LINEAR and not is_masked(stage):
                found, is_known = ones, False
        return found if is_known else None
    if name == "scale":
        return jax.tree.map(lambda one: jnp.abs(one * cells["step_size"]), ones)
    if name == "scale_by_schedule":
        rate = cells["step_size_fn"](state.count)
        return jax.tree.map(lambda one: jnp.abs(one * rate), ones)
    if name in INJECTED and "learning_rate" in getattr(state, "hyperparams", {}):
        scheduled = cells["sched_hps"].get("learning_rate") if "sched_hps" in cells else None
        rate = state.hyperparams["learning_rate"]
        if scheduled is not None:
            rate = scheduled(state.hyperparams_states["learning_rate"])
        return jax.tree.map(lambda one: one * rate, ones)
    if name == "MultiSteps" and cells["opt"] is not None:
        return rates(cells["opt"].update, state.inner_opt_state, params)
    if name == "partition":
        labels = cells["param_labels"]
        labels = labels(params) if callable(labels) else labels
        labels = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), labels, params)
        of_groups = {
            label: rates(transform.update, state.inner_states[label].inner_state, params)
            for label, transform in cells["transforms"].items()
        }
        if any(found is None for found in of_groups.values()):
            return None
        flat, structure = jax.tree.flatten(labels)
        leaves = {label: jax.tree.leaves(found) for label, found in of_groups.items()}
        return jax.tree.unflatten(structure, [leaves[label][i] for i, label in enumerate(flat)])
    return None


def is_masked(update: Update) -> bool:
    """Whether it is a stage of weight decay or the like for some of the parameters."""
    name, cells = made_by(update)
    if name == "with_extra_args_support":
        return is_masked(cells["tx"].update)
    return name == "masked" and made_by(cells["inner"].update)[0] in (*LINEAR, "with_extra_args_support")
