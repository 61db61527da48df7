"""What the difference of an array comes of: conventions that porters confuse, and what it looks like."""

from dataclasses import dataclass

import numpy as np

from p3.parity.function import wide
from p3.parity.mismatch import Explanation, resemblance
from p3.parity.models.case import ModelCase, Planting, Spot, greatest
from p3.parity.models.module import Mode
from p3.parity.models.tape import Event, StopRun
from p3.tolerance import EXPLAINED, FEW, ONE_CONSTANT


@dataclass(frozen=True)
class Causes:
    """The causes that are tried on a difference of two models."""

    case: ModelCase

    def convention(self, spot: Spot, got: np.ndarray, expected: np.ndarray) -> Explanation | None:
        """The convention by which the side that is PyTorch's gives what the other one does; None where none does."""
        if spot.what not in ("value", "output", "state") or got.shape != expected.shape:
            return None
        case = self.case
        torch = case.reference if case.is_torch_first else case.port
        other = got if case.is_torch_first else expected
        before = greatest(wide(got) - wide(expected))
        # What computes in float32 inside leaves more of a difference.
        least = min(ONE_CONSTANT.bound("float32", case.sizes[spot]), before / FEW.value)
        for text, mode in torch.conventions(lambda mode: self.by_convention(spot, mode)):
            found = self.by_convention(spot, mode)
            if found is None or found.shape != other.shape:
                continue
            left = greatest(wide(found) - wide(other))
            is_finite = np.isfinite(wide(found)).all() == np.isfinite(wide(other)).all()
            if is_finite and left <= max(EXPLAINED.value * before, least):
                return Explanation("convention", f"the two agree if in PyTorch {text}")
        return None

    def by_convention(self, spot: Spot, mode: Mode) -> np.ndarray | None:
        """
        What PyTorch's side has at a spot by a convention, at the reference's own numbers; None where it raises.

        The mode is on in the layer whose output it is, or else in the code between layers.
        """
        case = self.case
        run, recording = case.base
        found: list[np.ndarray] = []
        layer = spot.name.point.layer if isinstance(spot.name, Event) and spot.name.point.role == "output" else ""
        # A layer of which only the output is known begins after the layer before it.
        begins = layer and any(e.point.layer == layer and e.point.role == "input" for e in case.itself)
        mode.is_on = spot.what == "state" or not begins

        def see(where: Spot, got: np.ndarray, expected: np.ndarray) -> None:
            if isinstance(where.name, Event) and spot.what != "state":
                is_input = where.name.point.role == "input"
                mode.is_on = where.name.point.layer == layer if begins and is_input else not is_input and not begins
            if where == spot:
                found.append(np.array(got))
                if spot.what == "value":
                    raise StopRun

        try:
            if case.is_torch_first:
                run = case.run_reference("float64", Planting(case.itself, recording, see), mode=mode, forward=True)
                for path, x in run.outputs.items():
                    see(Spot("output", path), x, x)
                for where, x in case.in_torch(run, True).items():
                    see(where, x, x)
            else:
                port = case.run_port("float64", Planting(case.plan, recording, see), mode=mode, forward=True)
                for where, x, _ in case.ends(run._replace(gradients={}, input_gradients={}), port):
                    see(where, x, x)
        except StopRun:
            pass
        except Exception:  # which a model may raise where shapes are others
            return None
        return found[0] if found else None

    def masks(self) -> Explanation | None:
        """How the dropouts of the two models differ; None where they do not."""
        ours, theirs = self.case.base[1].masks, self.case.masks
        if len(ours) != len(theirs):
            return Explanation("masks", f"the reference draws {len(ours)} dropout masks, and the port {len(theirs)}")
        for mine, other in zip(ours, theirs, strict=True):
            text = f"dropout keeps with probability {mine.probability:g}"
            if mine.probability not in (other.probability, 1 - other.probability):
                return Explanation("masks", f"{text}, and in the port {other.probability:g}")
            if mine.probability != other.probability:
                text += f", and the port draws a mask that is true with probability {other.probability:g}"
                return Explanation("masks", text)
        return None

    def looks(self, spot: Spot, got: np.ndarray, expected: np.ndarray) -> Explanation:
        """What a difference looks like."""
        is_value = spot.what in ("value", "output", "state")
        instead = self.instead(spot, expected) if is_value else {}
        found = resemblance(got, expected, {cause.text: x for cause, x in instead.items()}, is_value=is_value)
        return next((cause for cause in instead if cause.text == found.text), found)

    def instead(self, spot: Spot, expected: np.ndarray) -> dict[Explanation, np.ndarray]:
        """What the array would be if a dropout scaled it twice or not at all, or if it were another output."""
        found: dict[Explanation, np.ndarray] = {}
        if spot.what == "output":
            outputs = self.case.base[0].outputs
            found |= {
                Explanation("another output", f"it is what the reference returns as {path}"): x
                for path, x in outputs.items()
                if path != spot.name
            }
        twice = Explanation("dropout", "dropout divides by the probability to keep twice")
        never = Explanation("dropout", "dropout does not divide by the probability to keep")
        for mask in self.case.base[1].masks:
            found |= {twice: expected / mask.probability, never: expected * mask.probability}
        return found

    def detached(self, event: Event, got: np.ndarray, expected: np.ndarray) -> Explanation | None:
        """Through which layer alone a cotangent comes back, or through which none does; None where neither is so."""
        recording, order = self.case.base[1], list(self.case.itself)
        bound = EXPLAINED.value * greatest(wide(got) - wide(expected))
        for other, part in recording.cotangents.items():
            is_later = other.point.role == "input" and other in order[order.index(event) + 1 :]
            if not is_later or part.shape != got.shape:
                continue
            if greatest(wide(got) - part) <= bound:
                text = f"it is only what comes back through {other.point.layer}: something beside it is detached"
                return Explanation("detached", text)
            if greatest(wide(expected) - part - got) <= bound:
                text = f"what comes back through {other.point.layer} is missing: something is detached"
                return Explanation("detached", text)
        return None
