"""Which arrays of two models correspond, as data: parameters, parts of them, and the links between them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import rearrange


@dataclass(frozen=True, eq=False)
class Parameter:
    """
    An array of a model.

    Attributes
    ----------
    path : as its library writes it; in JAX, the keys joined by dots
    layer : the path of the layer that owns it; "" for the model
    kind : the class of that layer: "Linear" of PyTorch, "nnx.Linear", "linen.Dense", "eqx.nn.Linear"; "" where unknown
    array : its numbers
    is_state : running statistics and the like, which have no gradient
    aliases : other paths of the same array
    parents : path and kind of the layers around, outermost first, where they are known
    """

    path: str
    layer: str
    kind: str
    array: np.ndarray
    is_state: bool = False
    aliases: tuple[str, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()


class Cut(NamedTuple):
    """
    A slice of one axis: of each of `groups` equal parts of the axis, the elements from start to stop.

    One group is the usual slice. As many groups as heads cut the query, key or value out of a projection that stores
    them side by side for each head.
    """

    axis: int
    start: int
    stop: int
    groups: int = 1


@dataclass(frozen=True)
class Part:
    """
    An array of a model, or a piece of it.

    Attributes
    ----------
    path : of the array
    cuts : what of it, at most one cut an axis; none for all of it
    """

    path: str
    cuts: tuple[Cut, ...] = ()

    def index(self, shape: tuple[int, ...]) -> Any:
        """The index of the piece in an array of that shape."""
        if not self.cuts:
            return ...
        axes = [np.arange(size) for size in shape]
        for axis, start, stop, groups in self.cuts:
            axes[axis] = axes[axis].reshape(groups, -1)[:, start:stop].ravel()
        return np.ix_(*axes)

    def of(self, array: np.ndarray) -> np.ndarray:
        """The piece of the array; all axes are kept."""
        piece: np.ndarray = array[self.index(array.shape)]
        return piece

    def __str__(self) -> str:
        """The path and the piece, as in `attn.in_proj_weight[0:8]`."""
        if not self.cuts:
            return self.path
        slices = [":"] * (max(cut.axis for cut in self.cuts) + 1)
        for axis, start, stop, groups in self.cuts:
            slices[axis] = f"{start}:{stop}" + (f" of each of {groups}" if groups > 1 else "")
        return f"{self.path}[{', '.join(slices)}]"


@dataclass(frozen=True)
class Link:
    """
    An array of PyTorch and the array of JAX with the same numbers.

    Attributes
    ----------
    torch : one part; or the parts whose sum is JAX's array, as the two biases of an LSTM
    jax : the part on the other side
    pattern : of einops, from PyTorch to JAX, as "o i -> i o"; "" where they are equal as they are
    sizes : of those axes of the pattern that do not follow from the shape of PyTorch's array
    flipped : the axes of the pattern that are reversed, as in kernels of transposed convolutions
    """

    torch: tuple[Part, ...]
    jax: Part
    pattern: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    flipped: tuple[str, ...] = ()

    @property
    def is_sum(self) -> bool:
        """Whether JAX's array is a sum of several of PyTorch's."""
        return len(self.torch) > 1

    def to_jax(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """PyTorch's whole arrays, one for each part, as the part in JAX."""
        pieces = [part.of(array) for part, array in zip(self.torch, arrays, strict=True)]
        return self.laid_out(sum(pieces[1:], start=pieces[0]))

    def to_torch(self, array: np.ndarray) -> tuple[np.ndarray, ...]:
        """The whole array of JAX as the parts in PyTorch; of a sum, all of it in the first and zeros in the rest."""
        piece = self.laid_back(self.jax.of(array))
        return piece, *(np.zeros_like(piece) for _ in self.torch[1:])

    def gradient_to_torch(self, array: np.ndarray) -> tuple[np.ndarray, ...]:
        """A gradient of the whole array of JAX as that of the parts in PyTorch: the transpose of `to_jax`."""
        return (self.laid_back(self.jax.of(array)),) * len(self.torch)

    def laid_out(self, piece: np.ndarray) -> np.ndarray:
        """A piece from PyTorch's layout to that of JAX."""
        return rearrange(self.turned(piece), self.pattern, **dict(self.sizes)) if self.pattern else piece

    def laid_back(self, piece: np.ndarray) -> np.ndarray:
        """A piece from the layout of JAX to that of PyTorch."""
        if not self.pattern:
            return piece
        left, right = self.pattern.split(" -> ")
        return self.turned(rearrange(piece, f"{right} -> {left}", **dict(self.sizes)))

    def turned(self, piece: np.ndarray) -> np.ndarray:
        """A piece in PyTorch's layout with the flipped axes reversed."""
        axes = re.findall(r"\([^)]*\)|\S+", self.pattern.split(" -> ")[0])
        return np.flip(piece, tuple(axes.index(name) for name in self.flipped)) if self.flipped else piece


@dataclass(frozen=True)
class Guess:
    """
    A link that is partly a guess.

    Attributes
    ----------
    link : the link
    of : "layout", where another order of the axes has the same shape; "partner", where no name says that the two
        correspond, so that shape and order decided
    """

    link: Link
    of: Literal["layout", "partner"]


@dataclass(frozen=True)
class Match:
    """
    Which arrays of two models correspond.

    Attributes
    ----------
    links : in the order of PyTorch's parameters; an array may be in several, in parts or because it is tied
    torch_only, jax_only : what is in no link, parts of arrays included
    ignored : what the other side need not have: counters, masks and other states that are no running statistics
    is_loaded : whether the two sides hold the same numbers: some link of arrays that are not constant is equal
    guessed : the links that the user should look at
    """

    links: tuple[Link, ...]
    torch_only: tuple[str, ...]
    jax_only: tuple[str, ...]
    ignored: tuple[str, ...]
    is_loaded: bool
    guessed: tuple[Guess, ...]

    def to_jax(self, torch: Mapping[str, np.ndarray], jax: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies of JAX's arrays with PyTorch's numbers, in their own dtypes; what is not matched is as it was."""
        arrays = {path: np.array(array) for path, array in jax.items()}
        for link in reversed(self.links):  # of several arrays for a tied one the first counts
            array = arrays[link.jax.path]
            array[link.jax.index(array.shape)] = link.to_jax([torch[part.path] for part in link.torch])
        return arrays

    def to_torch(self, jax: Mapping[str, np.ndarray], torch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies of PyTorch's arrays with the numbers of JAX; what is not matched is as it was."""
        arrays = {path: np.array(array) for path, array in torch.items()}
        for link in reversed(self.links):
            for part, piece in zip(link.torch, link.to_torch(jax[link.jax.path]), strict=True):
                arrays[part.path][part.index(arrays[part.path].shape)] = piece
        return arrays

    def gradient_to_torch(
        self, jax: Mapping[str, np.ndarray], torch: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The gradients of JAX for PyTorch's arrays, summed where one has several links; zero for what has none."""
        arrays = {path: np.zeros_like(array) for path, array in torch.items()}
        for link in self.links:
            for part, piece in zip(link.torch, link.gradient_to_torch(jax[link.jax.path]), strict=True):
                arrays[part.path][part.index(arrays[part.path].shape)] += piece
        return arrays

    def to_json(self) -> str:
        """The match as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Match":
        """The match that `to_json` has written."""
        read = json.loads(text)
        names = ("torch_only", "jax_only", "ignored")
        return cls(
            links=tuple(map(link_of, read["links"])),
            is_loaded=read["is_loaded"],
            guessed=tuple(Guess(link_of(guess["link"]), guess["of"]) for guess in read["guessed"]),
            **{name: tuple(read[name]) for name in names},
        )


def link_of(read: Mapping[str, Any]) -> Link:
    """A link from JSON."""
    part, *parts = (
        Part(each["path"], tuple(Cut(*cut) for cut in each["cuts"])) for each in (read["jax"], *read["torch"])
    )
    sizes = tuple((name, size) for name, size in read["sizes"])
    return Link(tuple(parts), part, read["pattern"], sizes, tuple(read["flipped"]))
