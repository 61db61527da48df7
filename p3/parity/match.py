"""Which arrays of a model in PyTorch are which of its port in JAX: by name, kind of layer, shape, order and values."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain, combinations, pairwise, permutations, product
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from einops import EinopsError, rearrange

from p3.errors import InputError


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
    A piece of one axis: of each of `groups` equal parts of the axis, the elements from start to stop.

    One group is the usual slice; as many groups as heads cut query, key or value out of a projection that has them
    side by side for each head.
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
        """What NumPy takes to read or write the piece of an array of that shape."""
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
    torch : one part; or the parts that are added up to the one of JAX, as the two biases of an LSTM
    jax : the part on the other side
    pattern : of einops, from PyTorch to JAX, as "o i -> i o"; "" where they are equal as they are
    sizes : of the pattern's axes that the shape of PyTorch's array does not tell
    flipped : the pattern's axes that run the other way, as in kernels of transposed convolutions
    """

    torch: tuple[Part, ...]
    jax: Part
    pattern: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    flipped: tuple[str, ...] = ()

    @property
    def is_sum(self) -> bool:
        """Whether several arrays of PyTorch are added up."""
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
        """A piece in PyTorch's layout in that of JAX."""
        return rearrange(self.turned(piece), self.pattern, **dict(self.sizes)) if self.pattern else piece

    def laid_back(self, piece: np.ndarray) -> np.ndarray:
        """A piece in the layout of JAX in that of PyTorch."""
        if not self.pattern:
            return piece
        left, right = self.pattern.split(" -> ")
        return self.turned(rearrange(piece, f"{right} -> {left}", **dict(self.sizes)))

    def turned(self, piece: np.ndarray) -> np.ndarray:
        """A piece in PyTorch's layout with the flipped axes the other way around."""
        axes = re.findall(r"\([^)]*\)|\S+", self.pattern.split(" -> ")[0])
        return np.flip(piece, tuple(axes.index(name) for name in self.flipped)) if self.flipped else piece


@dataclass(frozen=True)
class Guess:
    """
    A link of which something could not be known.

    Attributes
    ----------
    link : the link
    of : "layout", where another order of the axes has the same shape; "partner", where no name says that the two belong
        together, so that shape and order have decided
    """

    link: Link
    of: Literal["layout", "partner"]


@dataclass(frozen=True)
class Match:
    """
    Which arrays belong together.

    Attributes
    ----------
    links : in the order of PyTorch's parameters; an array may be in several, in parts or because it is tied
    torch_only, jax_only : what is in no link, parts of arrays included
    ignored : what the other side need not have: counters, masks and other states that are no running statistics
    is_loaded : whether the two sides hold the same numbers: some link of arrays that are not constant is equal
    guessed : what the user is told to look at
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


# Names: words that mean the same, whatever a library calls them.

# What a last word says of an array; the first of a match is removed from the path.
ROLES = {
    "weight": "weight|kernel|scale|gamma|embedding|w",
    "bias": "bias|beta|offset|b",
    "mean": "running mean|mean|state index 0of2|running 0of2",
    "variance": "running var|var|variance|state index 1of2|running 1of2",
}
# In this order, each on what those before have left. A number is written as its rank of how many.
WORDS = (
    (r"layer norm|layernorm|rms norm|rmsnorm|batch norm|batchnorm|group norm|groupnorm|ln|bn|gn|normalization", "norm"),
    (r"(decoder|enc dec|encdec|encoder) (attention|attn)|cross ?(attention|attn)|multihead attn", "cross attn"),
    (r"((multi head|multihead|self|dot product) )*(attention|attn|mha)|self attn|sa", "attn"),
    (r"feed forward|feedforward|ffn|ff|mlp block|mlp", "mlp"),
    (r"to q|q proj\w*|query proj\w*|q lin\w*|linear q|wq|w q|query|queries", "q"),
    (r"to k|k proj\w*|key proj\w*|k lin\w*|linear k|wk|w k|key|keys", "k"),
    (r"to v|v proj\w*|value proj\w*|v lin\w*|linear v|wv|w v|value|values", "v"),
    (r"norm (before|0of\d)|(input|pre attn|attn out|attn output|attn|sa) norm", "norm before"),
    (r"norm (after|1of\d)|(post attn|mlp|output layer|output) norm", "norm after"),
    (r"(?<=attn )(c proj|proj\w*|wo|output dense|output)|to out|(out|output|o) proj\w*|out lin|w o|out|o", "out"),
    (r"norm f|f norm|final norm|norm final|norm post", "final norm"),
    (r"wte|(tok|token|tokens|word|words|input) emb\w*|emb\w* (tok|tokens|words?)|tok emb\w*|shared", "embed tokens"),
    (r"wpe|(pos|position|positions|positional) emb\w*|emb\w* (pos|positions?)|pos enc\w*", "embed positions"),
    (r"(token type|segment|type) emb\w*", "embed types"),
    (r"cls token|class token|class emb\w*|cls", "cls token"),
    (r"gate proj|w 0of3|wi 0of2|linear gate", "gate"),
    (r"c fc|fc in|up proj\w*|intermediate dense|dense h to 4h|(fc|lin|linear|dense|w|mlp|net) 0of2|w 2of3|wi( 1of2)?",
     "up"),
    (r"c proj|fc out|down proj\w*|output dense|dense 4h to h|(fc|lin|linear|dense|w|mlp|net) 1of2|w 1of3|wo", "down"),
    (r"lm head|classifier|heads?|logits|unembed\w*|output projection|score", "head"),
    (r"downsample|shortcut|skip", "shortcut"),
    (r"emb|embed|embedder|embeddings?", "embed"),
    (r"backward|bwd|reversed?", "reverse"),
    (r"fwd", "forward"),
    (r"enc", "encoder"),
    (r"dec", "decoder"),
    (r"dense", "linear"),
    (r"h|l|layers?|blocks?|resblocks", "layer"),
)  # fmt: skip
SAID_BY_ALL = {"model", "module", "params", "stats", "batch", "transformer", "backbone", "cell", "layer", "rnn"}
SYNONYMS = [(re.compile(rf"\b({pattern})\b"), word) for pattern, word in WORDS]
LAST_WORDS = [(re.compile(rf"(^| )({pattern})$"), role) for role, pattern in ROLES.items()]
# Projections of several things at once: how a component of a path is called, and what is in it, in this order.
FUSED = (
    (re.compile(r"(?i)w?qkv|(c_attn|in_proj|query_key_value)"), ("q", "k", "v")),
    (re.compile(r"(?i)w?kv(_|$)|key_value|to_kv"), ("k", "v")),
    (re.compile(r"(?i)gate_up|wi_fused"), ("gate", "up")),
)


class Name(NamedTuple):
    """
    What a path says.

    Attributes
    ----------
    words : in a common vocabulary
    numbers : each as a rank among its siblings; those that have no sibling say nothing
    by_kind : the same, as ranks among siblings of the same kind, which is how flax.linen counts
    role : one of `ROLES`, or ""
    """

    words: frozenset[str]
    numbers: tuple[int, ...]
    by_kind: tuple[int, ...]
    role: str


@cache
def understood(text: str) -> tuple[frozenset[str], str]:
    """The words of a path in the common vocabulary, and its role."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"[._\s]+", " ", re.sub(r"(?<=[A-Za-z])(?=\d+of)", " ", text)).strip().lower()
    role = ""
    for pattern, meant in LAST_WORDS:
        if found := pattern.search(text):
            # That an array is called an embedding says what layer it is of, too.
            text, role = text[: found.start()] + " embed" * (found[2] == "embedding"), meant
            break
    for pattern, word in SYNONYMS:
        text = pattern.sub(word, text)
    return frozenset(word for word in text.split() if not word[0].isdigit()) - SAID_BY_ALL, role


def named(paths: Iterable[str], kinds: Mapping[str, str]) -> dict[str, Name]:
    """What each of a side's paths says, where the kinds of the layers are known by their paths."""
    paths = list(paths)
    siblings: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for path in paths:
        for found in re.finditer(r"\d+", path):
            before, kind = path[: found.start()], kinds.get(path[: found.end()], "")
            siblings[before,].add(int(found[0]))
            siblings[before, kind].add(int(found[0]))
    names = {}
    for path in paths:
        text, end, numbers, by_kind = "", 0, [], []
        for found in re.finditer(r"\d+", path):
            before, number = path[: found.start()], int(found[0])
            alike_in_kind = sorted(siblings[before, kinds.get(path[: found.end()], "")])
            # In a list of arrays only those of a shape are counted together.
            alike = sorted(siblings[before,]) if found.end() < len(path) else alike_in_kind
            text += path[end : found.start()]
            if len(alike) > 1:
                numbers.append(alike.index(number))
                by_kind.append(alike_in_kind.index(number))
                text += f"{numbers[-1]}of{len(alike)}"
            end = found.end()
        words, role = understood(text + path[end:])
        names[path] = Name(words, tuple(numbers), tuple(by_kind), role)
    return names


def flattened(names: Mapping[str, Name]) -> dict[str, Name]:
    """The same names, where what is counted in two lists, one in the other, is counted through."""
    # A number, and after it another that is a component of its own, as in layer1.0.conv1.weight.
    nested = re.compile(r"(.*?)\d+\.(\w*\D\.)*?\d+(?=\.)")
    lists = {path: found[1] for path, name in names.items() if len(name.numbers) > 1 and (found := nested.match(path))}
    counted: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
    for path, before in lists.items():
        counted[before].add(names[path].numbers[:2])
    flat = dict(names)
    for path, before in lists.items():
        first, rest = names[path].numbers[:2], names[path].numbers[2:]
        numbers = (sorted(counted[before]).index(first), *rest)
        flat[path] = names[path]._replace(numbers=numbers, by_kind=numbers)
    return flat


def agreement(a: Name, b: Name) -> float:
    """How far the numbers of two names agree, from −1 to 1."""
    most = max(len(a.numbers), len(b.numbers))
    if not most:
        return 0

    def agree(x: tuple[int, ...], y: tuple[int, ...]) -> float:
        """Equal numbers count once for them, and different ones twice against them."""
        equal = sum(i == j for i, j in zip(x, y, strict=False))
        return (equal - 2 * (min(len(x), len(y)) - equal)) / (2 * most)

    # That both count in the same way is more than that one's count is by chance the other's.
    alike = max(agree(a.numbers, b.numbers), agree(a.by_kind, b.by_kind))
    return alike + max(alike, agree(a.numbers, b.by_kind), agree(a.by_kind, b.numbers))


def overlap(a: frozenset[str], b: frozenset[str], weights: Mapping[str, float]) -> float:
    """How much of the words of two names they share, from 0 to 1."""
    total = sum(weights[word] for word in a) + sum(weights[word] for word in b)
    return 2 * sum(weights[word] for word in a & b) / total if total else 0


# Layouts: what the axes are, by the kind of layer. "o" are the features of the output, or the words of an embedding,
# "i" those of the input, and "x", "y" and "z" are space.

TORCH_AXES = (
    (r"(NonDynamicallyQuantizable|Lazy)?Linear|Embedding(Bag)?|MultiheadAttention|(LSTM|GRU|RNN)(Cell)?", "oi"),
    (r"(Lazy)?Conv[123]d", "oixyz"),
    (r"(Lazy)?ConvTranspose[123]d", "ioxyz"),
    (r"Conv1D", "io"),
)
JAX_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(nnx|linen)\.(Linear|LinearGeneral|Dense|DenseGeneral|Conv) kernel", ("xyzio",)),
    (r"(nnx|linen)\.ConvTranspose kernel", ("xyzio",)),
    (r"(nnx|linen)\.ConvTranspose\(transpose_kernel=True\) kernel", ("xyzoi",)),
    (r"(nnx|linen)\.Embed embedding| embedding", ("oi",)),
    (r"eqx\.nn\.(Linear|Conv\w*|Embedding|LSTMCell|GRUCell) weight\w*", ("oixyz",)),
    (r"(\w+\.)*FlaxConv1D kernel", ("oi",)),
)
INNER_FIRST = {"kernel", "w", "W"}  # leaves that are (in, out) by convention; "weight" is (out, in)


@cache
def arrangements(torch: tuple[int, ...], jax: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """
    How one shape may be that of the other, rearranged.

    The side with fewer axes is the coarse one, and each of its axes several of the fine one's: of each, their numbers.
    Axes of size 1 say nothing and are left out.
    """
    coarse, fine = (torch, jax) if is_coarse(torch, jax) else (jax, torch)
    sizes = [size for size in coarse if size != 1]
    axes = [axis for axis, size in enumerate(fine) if size != 1]
    found = []
    for order in permutations(axes):
        groups, rest = [], list(order)
        for size in sizes:
            group: list[int] = []
            while rest and math.prod(fine[axis] for axis in group) < size:
                group.append(rest.pop(0))
            if math.prod(fine[axis] for axis in group) != size:
                break
            groups.append(tuple(group))
        if len(groups) == len(sizes) and not rest:
            found.append(tuple(groups))
    return tuple(found)


def is_coarse(torch: tuple[int, ...], jax: tuple[int, ...]) -> bool:
    """Whether PyTorch's array is the one with fewer axes, or as few, when those of size 1 are left out."""
    return sum(size != 1 for size in torch) <= sum(size != 1 for size in jax)


@dataclass(frozen=True)
class Layout:
    """
    One arrangement of two shapes.

    Attributes
    ----------
    groups : as `arrangements` has them
    axes : PyTorch's axes in the order in which they are in memory in JAX, each as often as JAX has axes for it
    """

    torch: tuple[int, ...]
    jax: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """As above."""
        if not is_coarse(self.torch, self.jax):
            return tuple(axis for group in self.groups for axis in group)
        coarse = [axis for axis, size in enumerate(self.torch) if size != 1]
        owner = {axis: mine for mine, group in zip(coarse, self.groups, strict=True) for axis in group}
        return tuple(owner[axis] for axis in sorted(owner))

    @property
    def is_in_order(self) -> bool:
        """Whether no axis is made of several in another order than theirs in memory."""
        return not is_coarse(self.torch, self.jax) or all(group == tuple(sorted(group)) for group in self.groups)

    @property
    def signature(self) -> tuple[int, ...]:
        """The order of PyTorch's axes alone, which layers of other sizes share."""
        return tuple(axis for i, axis in enumerate(self.axes) if i == 0 or self.axes[i - 1] != axis)

    def has_order(self, axes: str, order: str) -> bool:
        """Whether PyTorch's axes of those letters come in that order in JAX."""
        places = [f"n{order}".index(axes[axis]) for axis in self.axes]
        return places == sorted(places)

    def link(self, torch: tuple[Part, ...], jax: Part, letters: str, is_flipped: bool = False) -> Link:
        """A link with this layout, where the letters name PyTorch's axes; `is_flipped` turns those of space."""
        is_coarse_torch = is_coarse(self.torch, self.jax)
        coarse, fine = (self.torch, self.jax) if is_coarse_torch else (self.jax, self.torch)
        wide = [axis for axis, size in enumerate(coarse) if size != 1]
        names: dict[int, str] = {}
        sizes: list[tuple[str, int]] = []
        halves = iter([("h", "d")])  # heads are most of what is split in two
        for place, group in zip(wide, self.groups, strict=True):
            if not is_coarse_torch:
                mine = tuple(letters[axis] for axis in group)
            elif len(group) == 1:
                mine = (letters[place],)
            else:
                numbered = tuple(f"{letters[place]}{i}" for i in range(len(group)))
                mine = next(halves, numbered) if len(group) == 2 and not {"h", "d"} & set(letters) else numbered
            names.update(zip(group, mine, strict=True))
            sizes += [(names[axis], fine[axis]) for axis in group] if len(group) > 1 else []
        grouped = dict(zip(wide, self.groups, strict=True))
        written = [" ".join(bracketed([names[a] for a in grouped.get(axis, ())]) for axis in range(len(coarse)))]
        written.append(" ".join(names.get(axis, "1") for axis in range(len(fine))))
        left, right = written if is_coarse_torch else reversed(written)
        flipped = tuple(name for name in names.values() if is_flipped and name in "xyz")
        if left == right and not flipped:
            return Link(torch, jax)
        return Link(torch, jax, f"{left} -> {right}", tuple(sizes), flipped)


def bracketed(names: Sequence[str]) -> str:
    """The names of one axis in a pattern of einops."""
    return "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"


# What is matched: arrays, and parts of those that the other side has apart.


@dataclass(frozen=True, eq=False)
class Item:
    """
    An array of a model, or a part of it, that is matched as a whole.

    Attributes
    ----------
    parameter : whose it is
    part : what of it
    names : paths that say what it is: the parameter's, with the number of the layer or the word for the part
    """

    parameter: Parameter
    part: Part
    names: tuple[str, ...]
    known: dict[np.dtype, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def array(self) -> np.ndarray:
        """Its numbers."""
        return self.part.of(self.parameter.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @cached_property
    def leaf(self) -> str:
        """The last word of the path that is no number."""
        words = [word for word in self.parameter.path.split(".") if not word.isdigit()]
        return words[-1] if words else ""

    @cached_property
    def is_constant(self) -> bool:
        """Whether all elements are the same, which tells no array from another."""
        return self.array.size < 2 or bool(np.all(self.array == self.array.flat[0]))

    def numbers(self, dtype: np.dtype) -> tuple[int, int]:
        """What all arrays with the same numbers in that dtype have, in any order, and hardly any other."""
        if dtype not in self.known:
            flat = np.ascontiguousarray(self.array.astype(dtype)).reshape(-1)
            bits = flat.view(np.dtype(f"V{dtype.itemsize}")).view(np.uint8).reshape(-1, dtype.itemsize)
            words = np.zeros(len(bits), np.uint64)
            for i in range(dtype.itemsize):
                words = words * np.uint64(257) + bits[:, i]
            self.known[dtype] = int(words.sum()), int((words * words).sum())
        return self.known[dtype]

    @cached_property
    def letters(self) -> str:
        """What the axes of an array of PyTorch are; "" where its kind of layer does not say."""
        if len(self.shape) < 2 or "weight" not in self.leaf:
            return ""
        for pattern, letters in TORCH_AXES:
            if re.fullmatch(pattern, self.parameter.kind):
                space = re.search(r"(\d)d$", self.parameter.kind)
                layers = len(self.shape) - 2 - (int(space[1]) if space else 0)
                return "n" * layers + letters  # of several layers in one
        return ""

    @cached_property
    def orders(self) -> tuple[str, ...]:
        """In which orders an array of JAX may have the axes; none where its kind of layer does not say."""
        for pattern, orders in JAX_AXES:
            if re.fullmatch(pattern, f"{self.parameter.kind} {self.leaf}"):
                return orders
        return ()


def lower(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype of less precision."""
    if a == b or a.kind in "biu" or b.kind in "biu":
        return a
    return max(a, b, key=lambda dtype: float(ml_dtypes.finfo(dtype).eps))  # type: ignore[no-untyped-call]


def is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same numbers in the dtype of less precision."""
    dtype = lower(a.dtype, b.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def has_same_numbers(torch: Item, jax: Item) -> bool:
    """Whether two arrays have the same numbers in some order, and more than one."""
    if torch.is_constant or jax.is_constant:
        return False
    dtype = lower(torch.array.dtype, jax.array.dtype)
    return torch.numbers(dtype) == jax.numbers(dtype)


def fitting(torch: Item, jax: Item) -> tuple[Layout, ...]:
    """The layouts that two arrays may have, the likeliest first; one where the kinds or the shapes say."""
    return ordered_layouts(
        torch.shape, jax.shape, torch.letters, jax.orders, conventional(torch.leaf), conventional(jax.leaf)
    )


@cache
def ordered_layouts(
    torch: tuple[int, ...], jax: tuple[int, ...], letters: str, orders: tuple[str, ...], written: str, order: str
) -> tuple[Layout, ...]:
    """
    The layouts of two shapes, the likeliest first.

    Parameters
    ----------
    torch, jax : the shapes
    letters, orders : what the kinds of layers say of the axes
    written, order : what goes with the names of the leaves
    """
    found = [Layout(torch, jax, groups) for groups in arrangements(torch, jax)]
    found = [layout for layout in found if layout.is_in_order]
    if letters and orders:
        return tuple(dict.fromkeys(x for order in orders for x in found if x.has_order(letters, order)))
    written, order = letters or written, orders[0] if orders else order

    def strangeness(layout: Layout) -> tuple[bool, int]:
        """By what the least conventional layout is the last."""
        swaps = sum(a > b for a, b in combinations(layout.axes, 2))
        if not written or not order or len(torch) > len(written):
            return False, swaps
        # Of an array that is written as xyzio, what is there are the last axes: io.
        mine = written if written[0] == "o" or letters else written[len(written) - len(torch) :]
        return not layout.has_order(mine, order), swaps

    return tuple(sorted(found, key=strangeness))


@cache
def conventional(leaf: str) -> str:
    """The order of the axes that goes with the name of a leaf; "" where none does."""
    if leaf == "weight" or leaf.endswith("_weight") or leaf.startswith("weight_"):
        return "oixyz"
    return "xyzio" if leaf.endswith("kernel") or re.fullmatch(r"[wW](_?\w+)?", leaf) else ""


def in_groups(torch: Item, jax: Item) -> Link | None:
    """The link of the kernels of a transposed convolution in several groups, whose axes no single order relates."""
    if not torch.parameter.kind.startswith("ConvTranspose") or "ConvTranspose" not in jax.parameter.kind:
        return None
    (inner, outer, *space), (all_outer, one_inner, *same) = torch.shape, jax.shape
    groups = all_outer // outer
    if groups < 2 or (groups * outer, groups * one_inner, space) != (all_outer, inner, same):
        return None
    names = " ".join("xyz"[: len(space)])
    return Link(
        (torch.part,), jax.part, f"(g i) o {names} -> (g o) i {names}", (("g", groups),), tuple("xyz"[: len(space)])
    )


def fits(torch: Item, jax: Item) -> bool:
    """Whether the two can be the same array, whatever they are called."""
    if torch.array.size != jax.array.size:
        return False
    kinds = torch.array.dtype.kind, jax.array.dtype.kind
    if kinds[0] != kinds[1] and set(kinds) & set("biu"):
        return False
    return bool(fitting(torch, jax)) or (len(jax.shape) > 2 and in_groups(torch, jax) is not None)


Pair = tuple[tuple[Item, ...], Item]


def linked(pairs: Sequence[Pair]) -> tuple[list[Link], list[bool]]:
    """The links of pairs, and whether each one's layout is a guess."""
    # Of two unknown kinds of layers, those whose shape allows one layout tell that of the others.
    votes: defaultdict[tuple[str, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)
    options = [fitting(torch[0], jax) for torch, jax in pairs]
    keys = [tuple(w for item in (torch[0], jax) for w in (item.parameter.kind, item.leaf)) for torch, jax in pairs]
    for key, layouts in zip(keys, options, strict=True):
        if len(layouts) == 1 and len(layouts[0].signature) > 1:
            votes[key][layouts[0].signature] += 1
    told = set(votes)
    for key, layouts, (torch, jax) in zip(keys, options, pairs, strict=True):
        if len(layouts) > 1 and key not in told and len(torch) == 1 and has_same_numbers(torch[0], jax):
            for layout in layouts:
                if is_equal(link_with(torch, jax, layout).laid_out(torch[0].array), jax.array):
                    votes[key][layout.signature] += 1
    links, guesses = [], []
    for key, layouts, (torch, jax) in zip(keys, options, pairs, strict=True):
        if not layouts and (link := in_groups(torch[0], jax)):
            links.append(link)
            guesses.append(False)
            continue
        layout = layouts[0]
        # Which of several axes comes first where they become one, only their use tells.
        is_merged = not is_coarse(layout.torch, layout.jax) and any(len(group) > 1 for group in layout.groups)
        is_known = len(layouts) == 1 or (
            "Norm" in torch[0].parameter.kind and layout.axes == tuple(sorted(layout.axes))
        )
        if not is_known and votes[key]:
            (order, count), *others = votes[key].most_common()
            agreeing = [x for x in layouts if x.signature == tuple(axis for axis in order if axis in x.signature)]
            is_known = bool(agreeing) and count > sum(number for _, number in others)
            layout = agreeing[0] if agreeing else layout
        links.append(link_with(torch, jax, layout))
        guesses.append(is_merged or not is_known)
    return links, guesses


def link_with(torch: tuple[Item, ...], jax: Item, layout: Layout) -> Link:
    """The link of a pair with a layout."""
    letters = torch[0].letters
    # That of the convolution whose transpose it is, which lies as PyTorch's.
    is_as_in_torch = "transpose_kernel" in jax.parameter.kind if jax.orders else is_transpose(layout, letters)
    is_flipped = torch[0].parameter.kind.startswith("ConvTranspose") and not is_as_in_torch
    return layout.link(tuple(item.part for item in torch), jax.part, letters or "abcdefgh", is_flipped)


def is_transpose(layout: Layout, letters: str) -> bool:
    """Whether a kernel of an unknown kind of layer has its axes as with flax's transpose_kernel."""
    if not letters or not layout.has_order(letters, "xyzoi"):
        return False
    # Where one of them is 1, its place tells.
    return not layout.has_order(letters, "xyzio") or layout.jax[-2:] == layout.torch[1::-1] != layout.torch[:2]


# What one side has in one array and the other in several.


def families(items: Iterable[Item]) -> dict[tuple[str, str], list[Item]]:
    """The items of one shape whose paths differ in one number, by what is around it."""
    found: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        for number in re.finditer(r"\d+", item.names[0]):
            found[item.names[0][: number.start()], item.names[0][number.end() :]].append(item)
    return {
        around: members
        for around, members in found.items()
        if len(members) > 1 and len({item.shape for item in members}) == 1
    }


def unstacked(mine: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The items of a side, where those that hold as many layers as the other side has apart are taken apart."""
    layered: defaultdict[int, list[tuple[tuple[str, str], Item]]] = defaultdict(list)
    for around, members in families(others).items():
        layered[len(members)].append((around, members[0]))
    # What is in numbered layers is not stacked as well; the 1 of norm1 is the number of no layer.
    apart = {
        (item, len(members))
        for (before, after), members in families(mine).items()
        if before.endswith((".", "_")) and after.startswith(".")
        for item in members
    }
    mine_have, they_have = (Counter(sorted_shape(item.shape) for item in items) for items in (mine, others))

    def is_layer_of(member: Item, item: Item) -> bool:
        """Whether an item can hold several of the member, or of what is projected with it at once."""
        shape = sorted_shape(member.shape)
        if mine_have[shape] >= they_have[shape]:  # there are as many of them apart
            return False
        is_whole = member.array.size * item.shape[0] == item.array.size
        return is_whole or is_piece(member, item) or is_piece(item, member)

    done = []
    for item in mine:
        count = item.shape[0] if item.shape else 0
        near = [x for x in layered[count] if is_layer_of(x[1], item) and (item, count) not in apart]
        whole = [likeness(item.names[0], x.names[0]) for x in others if x.array.size == item.array.size]
        nearness = [likeness(item.names[0], x.names[0]) + (is_piece(x, item) or is_piece(item, x)) for _, x in near]
        if not near or max(nearness) <= max(whole, default=-1):
            done.append(item)
            continue
        best, _ = near[int(np.argmax(nearness))]
        words = item.names[0].split(".")
        # The number goes where the other side has it, as near as the words around tell.
        place = max(range(len(words)), key=lambda i: sum(map(likeness, split_at(words, i), best)))
        for i in range(count):
            name = ".".join([*words[:place], str(i), *words[place:]])
            done.append(replace(item, part=Part(item.part.path, (Cut(0, i, i + 1),)), names=(name,), known={}))
    return done


def sorted_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape, whatever the order of the axes."""
    return tuple(sorted(size for size in shape if size != 1))


def split_at(words: Sequence[str], place: int) -> tuple[str, str]:
    """The path before a place and after it."""
    return ".".join(words[:place]), ".".join(words[place:])


def likeness(a: str, b: str) -> float:
    """How much of the words of two paths are the same, from 0 to 1, with no account of how frequent they are."""
    (mine, role), (theirs, other) = understood(a), understood(b)
    if role and other and role != other:
        return -1
    total = len(mine) + len(theirs)
    return 2 * len(mine & theirs) / total if total else 1


def unfused(mine: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The items of a side, where projections of several things that the other side has apart are taken apart."""
    done = []
    for item in mine:
        for pattern, words in FUSED:
            path = item.names[0].split(".")
            places = [i for i, word in enumerate(path) if pattern.search(word)]
            if not places or any(x.array.size == item.array.size and pattern.search(x.names[0]) for x in others):
                continue
            if parts := pieces(item, next(iter(projections(item, words, others)), ())):
                place = places[-1]
                for part, word in zip(parts, words, strict=True):
                    rest = path[place + 1 :] or [understood(path[place])[1]]
                    name = ".".join([*path[:place], word, *rest])
                    done.append(replace(item, part=part, names=(name,), known={}))
                break
        else:
            done.append(item)
    return done


def is_piece(item: Item, fused: Item) -> bool:
    """Whether the path of one says that it is one of the things of the other."""
    words, role = understood(item.names[0])
    return role == understood(fused.names[0])[1] and any(
        pattern.search(fused.names[0]) and words & set(parts) for pattern, parts in FUSED
    )


def projections(fused: Item, words: Sequence[str], others: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Arrays of the other side that are these things apart, and as large together as all of them at once."""
    role = understood(fused.names[0])[1]
    apart: defaultdict[tuple[str, ...], dict[str, Item]] = defaultdict(dict)
    for item in others:
        path = item.names[0].split(".")
        for i, component in enumerate(path):
            for word in understood(component)[0] & set(words):
                if understood(item.names[0])[1] == role:
                    apart[*path[:i], "", *path[i + 1 :]][word] = item
    for found in apart.values():
        if len(found) == len(words) and sum(item.array.size for item in found.values()) == fused.array.size:
            yield tuple(found[word] for word in words)


def pieces(fused: Item, apart: Sequence[Item]) -> list[Part]:
    """The pieces of one array that are as large as several of the other side; none where no axis can be cut so."""
    letters = fused.letters or (fused.orders or (conventional(fused.leaf) or "oixyz",))[0]
    by_last = letters.index("o") > letters.index("i")
    axes = sorted(range(len(fused.shape)), reverse=by_last)
    if len(axes) > 2:  # where one may be an axis of what is projected
        axes = [axis for axis, size in enumerate(fused.shape) if size == len(apart)] + axes
    for axis in axes if apart else ():
        length, size = fused.shape[axis], fused.array.size
        if any(length * item.array.size % size for item in apart):
            continue
        lengths = [length * item.array.size // size for item in apart]
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        if not all(
            arrangements((*fused.shape[:axis], n, *fused.shape[axis + 1 :]), item.shape)
            for n, item in zip(lengths, apart, strict=True)
        ):
            continue

        def cut(groups: int, axis: int = axis, starts: list[int] = starts) -> list[Part]:
            """The pieces, of each of so many groups."""
            ends = [start // groups for start in starts]
            return [Part(fused.part.path, (*fused.part.cuts, Cut(axis, a, b, groups))) for a, b in pairwise(ends)]

        # Loaded numbers tell whether the heads have their query, key and value side by side.
        dtype = lower(fused.array.dtype, apart[0].array.dtype)
        hashes = [item.numbers(dtype) for item in apart]
        if not fused.is_constant and fused.numbers(dtype) == tuple(sum(x) % 2**64 for x in zip(*hashes, strict=True)):
            for groups in range(1, math.gcd(*lengths) + 1):
                if math.gcd(*lengths) % groups == 0:
                    parts = cut(groups)
                    if replace(fused, part=parts[0], known={}).numbers(dtype) == hashes[0]:
                        return parts
        return cut(1)
    return []


# Recurrent cells, which every library keeps in other pieces.

GATES = {4: "ifgo", 3: "rzn", 1: ""}  # in PyTorch's order, which nnx and equinox have too
CELL_NAMES = (
    re.compile(r"(?:^|\.)(?:dense_)?(?P<of>[ih])(?P<gate>[ifgorzn]?)_?\.(?P<role>kernel|weight|w|bias|b)$"),
    re.compile(r"(?:^|\.)(?P<role>weight|kernel|w|bias|b)_?(?P<of>[ih])h?(?P<suffix>_l\d+(_reverse)?)?$"),
    re.compile(r"(?:^|\.)(?P<role>bias|b)(?P<gate>_n)?$"),
)


@dataclass(frozen=True, eq=False)
class Cell:
    """
    The arrays of one layer, in one direction, of a recurrent network.

    Attributes
    ----------
    name : a path that says which layer and direction it is
    arrays : by what they act on, "i" for the input, "h" for the hidden state and "" for both; the gate, "" for all of
        them; and whether they are a "weight" or a "bias"
    """

    name: str
    arrays: Mapping[tuple[str, str, str], Item]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """How many gates, and features of the hidden state and of the input; zeros for what is no cell."""
        weights = {of: [x for (on, _, role), x in self.arrays.items() if (on, role) == (of, "weight")] for of in "ih"}
        gates = {of: {gate for on, gate, role in self.arrays if (on, role) == (of, "weight")} for of in "ih"}
        if gates["i"] != gates["h"] or not all(len(x.shape) == 2 for xs in weights.values() for x in xs):
            return 0, 0, 0
        if "" in gates["h"]:
            (recurrent,), hidden = weights["h"], min(weights["h"][0].shape)
            count = max(recurrent.shape) // hidden if hidden else 0
            is_whole = count in GATES and max(recurrent.shape) == count * hidden and len(gates["h"]) == 1
        else:
            count, hidden = len(gates["h"]), weights["h"][0].shape[0] if weights["h"] else 0
            is_whole = count in GATES and gates["h"] == set(GATES[count])
        inputs = sum(x.array.size for x in weights["i"])
        return (count, hidden, inputs // (count * hidden)) if is_whole and hidden else (0, 0, 0)


def cells(items: Sequence[Item]) -> list[Cell]:
    """The recurrent cells of a side."""
    arrays: defaultdict[str, dict[tuple[str, str, str], Item]] = defaultdict(dict)
    for item in items:
        for pattern in CELL_NAMES:
            if found := pattern.search(item.names[0]):
                parts = {name: value or "" for name, value in found.groupdict().items()}
                name = item.names[0][: found.start()] + parts.get("suffix", "").replace("_", ".")
                role = "bias" if parts["role"] in ("bias", "b") else "weight"
                arrays[name][parts.get("of", ""), parts.get("gate", "").strip("_"), role] = item
                break
    return [cell for cell in (Cell(name, found) for name, found in arrays.items()) if cell.sizes[0]]


def recurrent(torch: Cell, jax: Cell) -> Iterator[Pair]:
    """The arrays, and pieces of them, that belong together in two cells."""
    count, hidden, _ = torch.sizes
    gates = GATES[count]

    def cut(item: Item, gate: str, until: str = "") -> Item:
        """A piece of an array of all gates: one gate, or those from one until another."""
        if not gate:
            return item
        start = gates.index(gate)
        stop = gates.index(until) if until else start + 1
        return replace(item, part=Part(item.part.path, (Cut(0, start * hidden, stop * hidden),)), known={})

    both = [torch.arrays[of, "", "bias"] for of in "ih" if (of, "", "bias") in torch.arrays]
    for (of, gate, role), item in jax.arrays.items():
        if role == "weight":
            yield (cut(torch.arrays[of, "", "weight"], gate),), item
        elif len(both) < 2:
            continue
        elif of and all((other, gate, "bias") in jax.arrays for other in "ih"):
            yield (cut(both["ih".index(of)], gate),), item
        elif count != 3 or gate in ("r", "z"):
            yield tuple(cut(bias, gate) for bias in both), item
        # In the new state of a GRU the bias of the hidden state is multiplied by the reset gate, so it is on its own.
        elif gate == "n":
            yield (cut(both[of != "i"], gate),), item
        else:
            yield tuple(cut(bias, "r", "n") for bias in both), cut(item, "r", "n")
            yield (cut(both[0], "n"),), cut(item, "n")


# The assignment.

# How much what is known of two arrays says, in the same unit as the rest of them.
VALUES = 100  # they are equal
VALUES_BELOW_NAMES = 1  # the same, where most of what names say of equal arrays is right, so that the rest are mistakes
SIBLINGS = 2  # the weights of their layers belong together
WORDS_SHARED = 4
NUMBERS_SHARED = 3
KINDS_DIFFER = 2
ORDER = 1 / 2
KINDS = (("norm", r"norm"), ("linear", r"linear|dense|einsum|conv1d$"), ("conv", r"conv"), ("embed", r"embed"))
IMPOSSIBLE = -1e6


def kind_of(item: Item) -> str:
    """What a layer is, of `KINDS`, as far as its class or the leaf tells."""
    kind = item.parameter.kind.lower()
    if "flaxconv1d" in kind or (kind == "conv1d" and len(item.shape) < 3):
        return "linear"
    kind = kind.removesuffix("1d") if kind != "conv1d" else "conv"
    leaf = {"embedding": "embed", "scale": "norm"}.get(item.leaf, "")
    return next((name for name, pattern in KINDS if re.search(pattern, kind)), leaf)


@dataclass(frozen=True, eq=False)
class Side:
    """The items of a side with what their names say, and their places among those of the same size."""

    items: Sequence[Item]
    names: Mapping[str, Name]

    @cached_property
    def places(self) -> dict[Item, float]:
        """From 0 to 1, in the order of the model."""
        alike: defaultdict[int, list[Item]] = defaultdict(list)
        for item in self.items:
            alike[item.array.size].append(item)
        return {item: i / len(items) for items in alike.values() for i, item in enumerate(items)}


def assigned(
    torch: Side, jax: Side, can: Callable[[Item, Item], bool], favoured: Mapping[tuple[str, str], int], values: int = 0
) -> tuple[list[tuple[Item, Item, bool]], float]:
    """
    The pairs that agree best in all, and whether anything but shape and order speaks for each; and how well.

    `favoured` are pairs of layers whose weights belong together, and `values` is what equal values weigh.
    """
    counts = Counter(word for side in (torch, jax) for name in side.names.values() for word in name.words)
    total = len(torch.names) + len(jax.names)
    weights = {word: math.log(1 + total / count) for word, count in counts.items()}

    def named(a: Item, b: Item) -> float:
        """What the names say."""
        return max(
            WORDS_SHARED * overlap(x.words, y.words, weights) + NUMBERS_SHARED * agreement(x, y)
            for x, y in product((torch.names[name] for name in a.names), (jax.names[name] for name in b.names))
        )

    def score(a: Item, b: Item) -> float:
        """What speaks for a pair."""
        x, y = torch.names[a.names[0]], jax.names[b.names[0]]
        is_statistic = x.role in ("mean", "variance")
        if not can(a, b) or (x.role and y.role and x.role != y.role):
            return IMPOSSIBLE
        if a.parameter.is_state != b.parameter.is_state and not (is_statistic and x.role == y.role):
            return IMPOSSIBLE
        kinds = kind_of(a), kind_of(b)
        return (
            named(a, b)
            + (x.role == y.role)
            + (a.parameter.layer == b.parameter.layer)
            + values * has_same_numbers(a, b)
            - KINDS_DIFFER * (all(kinds) and kinds[0] != kinds[1])
            + SIBLINGS * favoured.get((a.parameter.layer, b.parameter.layer), 0)
            - ORDER * abs(torch.places[a] - jax.places[b])
        )

    # Here, since the import adds filters of warnings.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    pairs, total_score = [], 0.0
    by_size: defaultdict[int, list[Item]] = defaultdict(list)
    for item in jax.items:
        by_size[item.array.size].append(item)
    for size in dict.fromkeys(item.array.size for item in torch.items):
        rows, columns = [item for item in torch.items if item.array.size == size], by_size[size]
        scores = np.array([[score(a, b) for b in columns] for a in rows]).reshape(len(rows), len(columns))
        for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            if scores[i, j] > IMPOSSIBLE / 2:
                a, b = rows[i], columns[j]
                total_score += scores[i, j]
                is_only = np.sum(scores[i] > IMPOSSIBLE / 2) == np.sum(scores[:, j] > IMPOSSIBLE / 2) == 1
                pairs.append((a, b, bool(is_only) or named(a, b) > 0 or has_same_numbers(a, b)))
    return pairs, total_score


def agreed(torch: Side, jax: Side, values: int) -> list[tuple[Item, Item, bool]]:
    """The pairs that agree best, with what the weights of layers say of their other arrays."""
    flat = [replace(side, names=flattened(side.names)) for side in (torch, jax)]
    found = []
    for sides in ((torch, jax), (flat[0], jax), (torch, flat[1])):
        pairs, _ = assigned(*sides, fits, {}, values)
        favoured = {
            (a.parameter.layer, b.parameter.layer): values if has_same_numbers(a, b) else 1
            for a, b, is_named in pairs
            if is_named and a.array.ndim > 1
        }
        found.append(assigned(*sides, fits, favoured, values))
    return max(found, key=lambda pairs_and_score: pairs_and_score[1])[0]


def kinds_of(parameters: Iterable[Parameter]) -> dict[str, str]:
    """The kinds of a side's layers by their paths."""
    return {path: kind for x in parameters for path, kind in (*x.parents, (x.layer, x.kind))}


def side_of(items: Sequence[Item]) -> Side:
    """A side of the assignment."""
    shapes = {name: str(item.shape) for item in items for name in item.names}
    names = named(shapes, kinds_of(item.parameter for item in items) | shapes)
    for item in items:  # a norm is one, whatever it is called
        for name in item.names:
            names[name] = names[name]._replace(words=names[name].words | ({kind_of(item)} - {""}))
    return Side(items, names)


def matched_cells(torch: Sequence[Item], jax: Sequence[Item]) -> list[tuple[Cell, Cell, bool]]:
    """The recurrent cells that belong together, and whether anything but shapes and order says so."""

    def stand_ins(items: Sequence[Item]) -> dict[Item, Cell]:
        """An item for each cell of a side, under its name."""
        found = {}
        for cell in cells(items):
            owner = next(iter(cell.arrays.values())).parameter
            found[Item(replace(owner, array=np.zeros(1)), Part(owner.path), (cell.name,))] = cell
        return found

    mine, theirs = stand_ins(torch), stand_ins(jax)
    pairs, _ = assigned(side_of(list(mine)), side_of(list(theirs)), lambda a, b: mine[a].sizes == theirs[b].sizes, {})
    return [(mine[a], theirs[b], is_named) for a, b, is_named in pairs]


def tied(
    pairs: Sequence[tuple[Item, Item, bool]], torch: Sequence[Item], jax: Sequence[Item]
) -> Iterator[tuple[Item, Item, bool]]:
    """The pairs of what is left of one side with arrays of the other that are tied, by names that are not used yet."""
    for is_torch, items in ((True, torch), (False, jax)):
        linked_items = {a if is_torch else b for a, b, _ in pairs}
        again = []
        for a, b, _ in pairs:
            tied_one, other = (b, a) if is_torch else (a, b)
            used = max(tied_one.names, key=partial(likeness, other.names[0]))
            again += [replace(tied_one, names=(name,)) for name in tied_one.names if name != used]
        left = side_of([item for item in items if item not in linked_items])
        yield from assigned(*((left, side_of(again)) if is_torch else (side_of(again), left)), fits, {})[0]


def left_over(parameters: Sequence[Parameter], parts: Sequence[Part]) -> list[tuple[str, bool]]:
    """What of a side is in none of the parts, and for each whether the other side needs to have it."""
    found = []
    for parameter in parameters:
        mine = [part for part in parts if part.path == parameter.path]
        if any(not part.cuts for part in mine):
            continue
        free = np.ones(parameter.array.shape, bool)
        for part in mine:
            free[part.index(free.shape)] = False
        if not free.any():
            continue
        rest = Part(parameter.path)
        if mine:
            first, last = (f(np.argwhere(free), axis=0) for f in (np.min, np.max))
            cuts = [Cut(i, int(a), int(b) + 1) for i, (a, b) in enumerate(zip(first, last, strict=True))]
            rest = Part(parameter.path, tuple(cut for cut in cuts if cut.stop - cut.start < free.shape[cut.axis]))
        role = understood(parameter.path)[1]
        is_statistic = role in ("mean", "variance") and parameter.array.dtype.kind not in "biu"
        found.append((str(rest), is_statistic or not (parameter.is_state or parameter.array.dtype.kind in "biu")))
    return found


def fixed_link(path: str, target: Any, torch: Sequence[Parameter], jax: Sequence[Parameter]) -> Link:
    """
    The link that a user gives.

    Raises
    ------
    InputError
        There is no such path, the pattern is none, or a shape does not fit.
    """
    if not isinstance(target, str) and not (isinstance(target, tuple | list) and len(target) == 2):
        raise InputError(
            f"given {target!r} for {path!r}; give the JAX path, or it and a pattern as ('path', 'o i -> i o')"
        )
    other, pattern = (target, None) if isinstance(target, str) else target
    items = []
    for name, parameters, side in ((path, torch, "PyTorch"), (other, jax, "JAX")):
        named_so = [x for x in parameters if name in (x.path, *x.aliases)]
        if not named_so:
            near = max(parameters, key=lambda x: likeness(x.path, name), default=None)
            hint = f"; the nearest is {near.path!r}" if near else ""
            raise InputError(
                f"given the path {name!r}, which the model in {side} does not have{hint}; correct the path"
            )
        items.append(Item(named_so[0], Part(named_so[0].path), (name,)))
    mine, theirs = items
    shapes = f"{path!r} of shape {mine.shape} and {other!r} of shape {theirs.shape}"
    if pattern is None:
        if not fits(mine, theirs):
            raise InputError(
                f"given {shapes}, no order of whose axes agrees with their layers; give the pattern as well"
            )
        return linked([((mine,), theirs)])[0][0]
    link = Link((mine.part,), theirs.part, pattern, sizes_of(pattern, theirs.shape))
    try:
        laid = link.to_jax([mine.array]).shape
    except (EinopsError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"given {pattern!r} for {shapes}, which einops does not take ({line}); correct it") from error
    if laid != theirs.shape:
        raise InputError(f"given {pattern!r} for {shapes}, which makes it of shape {laid}; correct the pattern")
    return link


def sizes_of(pattern: str, jax: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """The sizes of the axes in brackets on the left of a pattern, as far as the shape on the right tells them."""
    left, _, right = pattern.partition("->")
    bracketed_names = {name for group in re.findall(r"\(([^)]*)\)", left) for name in group.split()}
    axes = re.findall(r"\([^)]*\)|\S+", right)
    return tuple((name, size) for name, size in zip(axes, jax, strict=False) if name in bracketed_names)


def match(torch: Sequence[Parameter], jax: Sequence[Parameter], given: Mapping[str, Any] | None = None) -> Match:
    """
    Which arrays of two models belong together.

    Parameters
    ----------
    torch, jax : the arrays of both, each in the order of its model
    given : what is known better: the path in JAX of a path in PyTorch, alone or with a pattern of einops from PyTorch
        to JAX, as `{"fc.weight": ("fc.kernel", "o i -> i o")}`

    Raises
    ------
    InputError
        A path that is given is not there, or a shape does not fit.
    """
    fixed = [fixed_link(path, target, torch, jax) for path, target in (given or {}).items()]
    gone = {link.torch[0].path for link in fixed}, {link.jax.path for link in fixed}
    mine, theirs = (
        [Item(x, Part(x.path), (x.path, *x.aliases)) for x in parameters if not {x.path, *x.aliases} & taken]
        for parameters, taken in zip((torch, jax), gone, strict=True)
    )
    mine, theirs = unstacked(mine, theirs), unstacked(theirs, mine)
    mine, theirs = unfused(mine, theirs), unfused(theirs, mine)
    pairs: list[Pair] = []
    doubtful: list[bool] = []
    for a, b, is_named in matched_cells(mine, theirs):
        found = list(recurrent(a, b))
        pairs += found
        doubtful += [not is_named] * len(found)
        mine = [item for item in mine if item not in a.arrays.values()]
        theirs = [item for item in theirs if item not in b.arrays.values()]
    sides = side_of(mine), side_of(theirs)
    found_pairs = agreed(*sides, VALUES_BELOW_NAMES)
    equal = sum(has_same_numbers(a, b) for a, b, _ in found_pairs)
    if 2 * equal < sum(any(has_same_numbers(a, b) for b in theirs if b.array.size == a.array.size) for a in mine):
        found_pairs = agreed(*sides, VALUES)
    found_pairs += tied(found_pairs, mine, theirs)
    pairs += [((a,), b) for a, b, _ in found_pairs]
    doubtful += [not is_named for _, _, is_named in found_pairs]
    links, guesses = linked(pairs)
    places = {path: i for i, x in enumerate(torch) for path in (x.path, *x.aliases)}
    order = sorted(range(len(links)), key=lambda i: (places[links[i].torch[0].path], links[i].torch[0].cuts))
    guessed = [Guess(links[i], "partner") for i in order if doubtful[i]]
    guessed += [Guess(links[i], "layout") for i in order if guesses[i]]
    links = sorted((*fixed, *links), key=lambda link: (places[link.torch[0].path], link.torch[0].cuts))
    arrays = {x.path: x.array for x in torch}, {x.path: x.array for x in jax}
    left = left_over(torch, [part for link in links for part in link.torch]), left_over(jax, [x.jax for x in links])
    torch_only, jax_only = (tuple(name for name, is_needed in side if is_needed) for side in left)
    ignored = tuple(name for side in left for name, is_needed in side if not is_needed)
    is_loaded = any(
        not np.all(y == y.flat[:1]) and is_equal(link.to_jax([arrays[0][part.path] for part in link.torch]), y)
        for link, y in ((link, link.jax.of(arrays[1][link.jax.path])) for link in links)
    )
    return Match(tuple(links), torch_only, jax_only, ignored, is_loaded, tuple(guessed))


@dataclass(frozen=True)
class Comparison:
    """
    Whether the arrays of a link are equal, and what would make them so.

    Attributes
    ----------
    link : the link
    is_equal : whether all numbers are equal in the dtype of less precision
    fault : "" of equal ones; "layout", where another order of the axes would be equal; "flip", where the axes of space
        the other way around; "parameter", where the numbers are those of another array of PyTorch, or of only some of
        the arrays of a sum; "order", where elements along an axis come in another order, as gates and heads;
        "values" else
    instead : the link that holds; None where none does
    axis : of JAX's array, along which the order is another
    order : of equal pieces of that axis: of each, the place at which the link has it
    """

    link: Link
    is_equal: bool
    fault: Literal["", "layout", "flip", "parameter", "order", "values"] = ""
    instead: Link | None = None
    axis: int | None = None
    order: tuple[int, ...] = ()


def compared(match: Match, torch: Sequence[Parameter], jax: Sequence[Parameter]) -> tuple[Comparison, ...]:
    """
    Whether each link's arrays are equal, and what would make them so.

    Parameters
    ----------
    match : of the two models
    torch, jax : their arrays
    """
    mine, theirs = {x.path: x for x in torch}, {x.path: x for x in jax}
    single = {part: Item(mine[part.path], part, (part.path,)) for link in match.links for part in link.torch}
    found = []
    for link in match.links:
        item = Item(theirs[link.jax.path], link.jax, (link.jax.path,))
        expected = link.to_jax([mine[part.path].array for part in link.torch])
        found.append(
            Comparison(link, True) if is_equal(expected, item.array) else explained(link, expected, item, single)
        )
    return tuple(found)


def explained(link: Link, expected: np.ndarray, jax: Item, single: Mapping[Part, Item]) -> Comparison:
    """What would make the two sides of a link equal that are not."""
    # The link's own arrays first, so that what is told is the least that has to change.
    for part in dict.fromkeys((*link.torch, *single)):
        torch = single[part]
        if torch.array.size != jax.array.size or not has_same_numbers(torch, jax):
            continue
        is_other = part not in link.torch or link.is_sum
        as_linked = replace(link, torch=(part,))
        others = rearranged(torch, jax)
        if is_other and torch.shape == single[link.torch[0]].shape:
            others = chain((as_linked,), others)
        for other in others:
            if is_equal(other.laid_out(torch.array), jax.array):
                is_turned = replace(other, flipped=link.flipped) == as_linked
                return Comparison(link, False, "parameter" if is_other else "flip" if is_turned else "layout", other)
    for axis in range(expected.ndim):
        if order := reordered(expected, jax.array, axis):
            return Comparison(link, False, "order", axis=axis, order=order)
    return Comparison(link, False, "values")


def rearranged(torch: Item, jax: Item) -> Iterator[Link]:
    """The links with all layouts that the shapes allow."""
    letters = torch.letters or "abcdefgh"
    layouts = [Layout(torch.shape, jax.shape, groups) for groups in arrangements(torch.shape, jax.shape)]
    for layout, is_flipped in product(layouts, (False, True)):
        yield layout.link((torch.part,), jax.part, letters, is_flipped)


def reordered(a: np.ndarray, b: np.ndarray, axis: int) -> tuple[int, ...]:
    """In which order the pieces of `a` along an axis are those of `b`, the largest pieces there are; () in none."""
    dtype = lower(a.dtype, b.dtype)
    rows = [np.moveaxis(x.astype(dtype), axis, 0).reshape(x.shape[axis], -1) for x in (a, b)]
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, row in reversed(list(enumerate(rows[0]))):
        places[row.tobytes()].append(i)
    order = []
    for row in rows[1]:
        if not places[row.tobytes()]:
            return ()
        order.append(places[row.tobytes()].pop())
    for count in range(2, len(order) + 1):
        size = len(order) // count
        if size * count == len(order):
            blocks = np.reshape(order, (count, size))
            if np.all(blocks[:, :1] % size == 0) and np.all(blocks == blocks[:, :1] + np.arange(size)):
                return tuple(int(start) // size for start in blocks[:, 0])
    return ()
