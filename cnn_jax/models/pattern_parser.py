"""The text of a pattern, such as "[[conv3-64]*2 pool]*3 [fc512]*1 fc10", as a tuple of layers.

The grammar, in EBNF; white space separates layers and may stand around brackets:

    pattern = { item } ;
    item    = ( layer | "[" , { item } , "]" ) , [ "*" , integer ] ;         *N: N times in a row, 0 leaves it out
    layer   = "conv" , size , "-" , filters , [ "s" , stride ] , [ "p" , ( integer | "same" | "valid" ) ]
            | ( "pool" | "avgpool" ) , [ size ] , [ "s" , stride ]           2×2; the stride is the size
            | "gap"                                                          global average: one number a map
            | "drop" , rate                                                  dropout, 0 <= rate < 1
            | "bn"                                                           batch normalisation
            | "fc" , units ;

Strides of convolutions are 1 and their padding is "same" unless given. The last layer is the classifier, without
activation: fc{K}, or conv and gap (a map for each class, averaged; Lin et al. 2013, "Network in network", §3.2). Every
other conv and fc is followed by the activation; a bn that stands directly behind one comes before its activation and
replaces its bias. After gap or the first fc there are no maps any more: only fc, drop and bn follow.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from cnn_jax.errors import UserError, nearest

MAX_LAYERS = 1000
MAX_DEPTH = 20  # of groups in groups


@dataclass(frozen=True)
class Convolution:
    """conv: `filters` of size × size; `padding` is pixels at every edge, or "SAME" or "VALID"."""

    size: int
    filters: int
    stride: int = 1
    padding: int | str = "SAME"
    kind = "conv"


@dataclass(frozen=True)
class Pooling:
    """pool and avgpool: of size × size windows, without padding."""

    operation: Literal["max", "average"]
    size: int = 2
    stride: int = 2
    kind = "pool"


@dataclass(frozen=True)
class GlobalAverage:
    """gap: the mean of each map."""

    kind = "gap"


@dataclass(frozen=True)
class Dropout:
    """drop: in training, `rate` of the activations are zeroed."""

    rate: float
    kind = "drop"


@dataclass(frozen=True)
class Normalization:
    """bn: batch normalisation."""

    kind = "bn"


@dataclass(frozen=True)
class Dense:
    """fc: `units`, each of which sees everything."""

    units: int
    kind = "fc"


Layer = Convolution | Pooling | GlobalAverage | Dropout | Normalization | Dense


def parse(pattern: str) -> tuple[Layer, ...]:
    """Returns the layers of a pattern, its groups repeated.

    Raises:
        UserError: it is not of the grammar, no network (no classifier, maps after the maps have ended), or of more than
            1000 layers.

    >>> len(parse("[[conv3-64]*2 pool]*3 [fc512]*1 fc10"))
    11
    """
    placed = _Parser(pattern).pattern()
    _check_order(pattern, placed)
    return tuple(layer for layer, _ in placed)


class _Token(NamedTuple):
    text: str
    place: int  # of its first character; the first of the pattern is 1


class _Form(NamedTuple):
    """How a layer is written: in words, as a regular expression, and what it makes of the groups."""

    words: str
    expression: str
    make: Callable[..., Layer]


def _convolution(size: str, filters: str, stride: str | None, padding: str | None) -> Layer:
    pad = padding or "same"
    return Convolution(int(size), int(filters), int(stride or 1), int(pad) if pad.isdigit() else pad.upper())


def _pooling(operation: Literal["max", "average"], size: str | None, stride: str | None) -> Layer:
    return Pooling(operation, int(size or 2), int(stride or size or 2))


_N = "([1-9][0-9]{0,5})"
_FORMS = {
    "conv": _Form(
        "conv{size}-{filters}[s{stride}][p{padding}], such as conv3-64 or conv7-64s2p3",
        f"conv{_N}-{_N}(?:s{_N})?(?:p([0-9]{{1,6}}|same|valid))?",
        _convolution,
    ),
    "pool": _Form("pool[{size}][s{stride}], such as pool3s2", f"pool{_N}?(?:s{_N})?", partial(_pooling, "max")),
    "avgpool": _Form(
        "avgpool[{size}][s{stride}], such as avgpool3s2", f"avgpool{_N}?(?:s{_N})?", partial(_pooling, "average")
    ),
    "gap": _Form("gap", "gap", GlobalAverage),
    "drop": _Form(
        "drop{rate} with 0 <= rate < 1, such as drop0.5",
        r"drop(0(?:\.[0-9]*)?|\.[0-9]+)",
        lambda rate: Dropout(float(rate)),
    ),
    "bn": _Form("bn", "bn", Normalization),
    "fc": _Form("fc{units}, such as fc512", f"fc{_N}", lambda units: Dense(int(units))),
}
_ANY = "expected one of conv, pool, avgpool, gap, drop, bn, fc or a group in [ ]"


class _Parser:
    """Recursive descent: a method for each rule of the grammar, which reads its tokens and returns its layers."""

    def __init__(self, text: str):
        self.text = text
        found = re.finditer(r"[][]|\*[0-9]*|[^][*\s]+", text)
        end = _Token("", len(text) + 1)
        self.tokens = [*(_Token(match[0], match.start() + 1) for match in found), end]
        self.next = 0

    def pattern(self) -> list[tuple[Layer, _Token]]:
        layers = self._items(depth=0)
        if self._token().text == "]":
            raise _refuse(self.text, self._token(), "expected [ before it; drop it")
        return layers

    def _items(self, depth: int) -> list[tuple[Layer, _Token]]:
        layers: list[tuple[Layer, _Token]] = []
        while self._token().text not in ("", "]"):
            start = self._token()
            item, times = self._item(depth), self._times()
            if len(layers) + len(item) * times > MAX_LAYERS:
                raise _refuse(self.text, start, f"expected at most {MAX_LAYERS} layers; repeat it less often")
            layers += item * times
        return layers

    def _item(self, depth: int) -> list[tuple[Layer, _Token]]:
        token = self._read()
        if token.text != "[":
            return [(self._layer(token), token)]
        if depth == MAX_DEPTH:
            raise _refuse(self.text, token, f"expected groups at most {MAX_DEPTH} deep; write fewer brackets")
        layers = self._items(depth + 1)
        if self._token().text != "]":
            raise _refuse(self.text, token, "expected ] for it; close the group")
        if not layers and self.tokens[self.next - 1] == token:
            raise _refuse(self.text, self._token(), f"{_ANY}; fill the group or drop it")
        self._read()
        return layers

    def _times(self) -> int:
        if not self._token().text.startswith("*"):
            return 1
        token = self._read()
        if token.text == "*" or len(token.text) > 7:
            raise _refuse(self.text, token, "expected * and how often, such as *3; write the number right behind it")
        return int(token.text[1:])

    def _layer(self, token: _Token) -> Layer:
        for form in _FORMS.values():
            if match := re.fullmatch(form.expression, token.text):
                return form.make(*match.groups())
        for kind, form in _FORMS.items():
            if token.text.startswith(kind):
                raise _refuse(self.text, token, f"expected {form.words}; write it so")
        close = nearest(token.text.rstrip("0123456789-."), _FORMS)
        hint = f"perhaps you meant {' or '.join(close)}" if close else "see docs/pattern.md"
        raise _refuse(self.text, token, f"{_ANY}; {hint}")

    def _token(self) -> _Token:
        return self.tokens[self.next]

    def _read(self) -> _Token:
        self.next += 1
        return self.tokens[self.next - 1]


def _check_order(text: str, placed: Sequence[tuple[Layer, _Token]]) -> None:
    """Refuses a list of layers that is no network."""
    ended: _Token | None = None
    for layer, token in placed:
        if ended and isinstance(layer, Convolution | Pooling | GlobalAverage):
            words = f"expected only fc, drop and bn after {ended.text} at character {ended.place}; move it before"
            raise _refuse(text, token, words)
        if isinstance(layer, Dense | GlobalAverage):
            ended = ended or token
    kinds = [layer.kind for layer, _ in placed]
    if kinds[-1:] != ["fc"] and kinds[-2:] != ["conv", "gap"]:
        token = placed[-1][1] if placed else _Token("", 1)
        raise _refuse(text, token, "expected fc{classes} as the last layer, or conv and gap; add one, such as fc10")


def _refuse(text: str, token: _Token, words: str) -> UserError:
    """The one line that points at a token."""
    what = repr(token.text) if token.text else "the end"
    return UserError(f"given the pattern {text!r}; at character {token.place}, {what}; {words}")
