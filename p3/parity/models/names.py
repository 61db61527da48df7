"""What the paths of parameters say: words that mean the same, whatever a library calls them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

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
    """What each path of a model says; `kinds` has the kinds of the layers by path."""
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
    """The same names, where nested lists are counted as one: block 1 of stage 2 as block 4, say."""
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
    """How well the numbers of two names agree, from −1 to 1."""
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
