"""Which arrays of two trainings correspond, and how those of one are laid out in the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from p3.parity.models.links import Link, Match, Part
from p3.parity.trainings.training import COUNT, PARAMETER, STATE, Arrays, State

ADDED = (PARAMETER, STATE)  # the roles that are added where one JAX array is a sum of several PyTorch arrays


@dataclass(frozen=True, eq=False)
class Pairing:
    """
    The arrays of two trainings that correspond.

    Attributes
    ----------
    match : of the parameters and states
    is_torch_first : whether the reference is PyTorch's
    parameters, states : the paths that each side has of these, the reference's first
    shapes : of the port's arrays
    """

    match: Match
    is_torch_first: bool
    parameters: tuple[frozenset[str], frozenset[str]]
    states: tuple[frozenset[str], frozenset[str]]
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def links(self) -> dict[str, tuple[Link, ...]]:
        """Those of parameters, and those of states."""
        found: dict[str, list[Link]] = {PARAMETER: [], STATE: []}
        for link in self.match.links:
            paths = [part.path for part in link.torch], [link.jax.path]
            ours, theirs = paths if self.is_torch_first else paths[::-1]
            for role, (mine, yours) in ((PARAMETER, self.parameters), (STATE, self.states)):
                if set(ours) <= mine and set(theirs) <= yours:
                    found[role].append(link)
        return {role: tuple(links) for role, links in found.items()}

    @cached_property
    def names(self) -> dict[Link, str]:
        """The name of each link: the reference's path."""
        return {link: self.name(link) for links in self.links.values() for link in links}

    def name(self, link: Link) -> str:
        """The reference's path, and what of the array."""
        return " + ".join(map(str, link.torch)) if self.is_torch_first else str(link.jax)

    def laid_out(self, role: str, link: Link, torch: Arrays) -> np.ndarray:
        """PyTorch's arrays of a link as the JAX array: their sum; or the first one, of gradients and moments."""
        if role in ADDED or not link.is_sum:
            return link.to_jax([torch[part.path] for part in link.torch])
        return link.laid_out(link.torch[0].of(torch[link.torch[0].path]))

    def aligned(self, role: str, reference: Arrays, port: Arrays) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """The name, the port's array, and the reference's, in JAX's layout; of those links that both have."""
        torch, jax = (reference, port) if self.is_torch_first else (port, reference)
        for link in self.links[STATE if role == STATE else PARAMETER]:
            if link.jax.path in jax and all(part.path in torch for part in link.torch):
                ours = self.laid_out(role, link, torch)
                theirs = link.jax.of(jax[link.jax.path])
                yield self.names[link], *((theirs, ours) if self.is_torch_first else (ours, theirs))

    def to_port(self, role: str, reference: Arrays) -> dict[str, np.ndarray]:
        """The reference's arrays as the port's."""
        found: dict[str, np.ndarray] = {}
        for link in self.links[STATE if role == STATE else PARAMETER]:
            if self.is_torch_first:
                if all(part.path in reference for part in link.torch):
                    put(found, link.jax, self.laid_out(role, link, reference), self.shapes[link.jax.path])
            elif link.jax.path in reference:
                x = reference[link.jax.path]
                pieces = link.to_torch(x) if role in ADDED else link.gradient_to_torch(x)
                for part, piece in zip(link.torch, pieces, strict=True):
                    put(found, part, piece, self.shapes[part.path])
        return found

    def state_to_port(self, state: State) -> dict[str, dict[str, np.ndarray]]:
        """All that the reference holds, as the port's; without its counts, which each side keeps itself."""
        return {role: self.to_port(role, arrays) for role, arrays in state.items() if role != COUNT}


def put(found: dict[str, np.ndarray], part: Part, piece: np.ndarray, shape: tuple[int, ...]) -> None:
    """Put a piece into an array."""
    if not part.cuts:
        found[part.path] = piece
        return
    array = found.setdefault(part.path, np.zeros(shape, piece.dtype))
    array[part.index(shape)] = piece
