"""Parses a pattern, such as "[[conv3-64]*2 pool]*3 [fc512]*1 fc10", into a tuple of layers.

Grammar in EBNF; white space separates layers and is optional around brackets:

    pattern = { item } ;
    item    = ( layer | "[" , { item } , "]" ) , [ "*" , integer ] ;         *N: N times in a row, 0 leaves it out
    layer   = "conv" , size , "-" , filters , [ "s" , stride ] , [ "p" , ( integer | "same" | "valid" ) ]
            | ( "pool" | "avgpool" ) , [ size ] , [ "s" , stride ]           2×2 and stride = size by default
            | "gap"                                                          global average pooling
            | "drop" , rate                                                  dropout, 0 <= rate < 1
            | "bn"                                                           batch normalisation
            | "fc" , units ;

Convolutions default to stride 1 and "same" padding. The last layer is the classifier and has no activation: fc{K}, or
conv and gap (one map per class, averaged; Lin et al. 2013, "Network in network", §3.2). Every other conv and fc is
followed by the activation. A bn directly after one comes before its activation and replaces its bias. Once gap or the
first fc has removed the spatial axes, only fc, drop and bn may follow.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from cnn_jax.errors import UserError, nearest

MAX_LAYERS = 1000
MAX_DEPTH = 20  # nesting of groups


@dataclass(frozen=True)
class Convolution:
    """conv: `filters` filters of size × size; `padding` is in pixels at every edge, or "SAME" or "VALID"."""

    size: int
    filters: int
    stride: int = 1
    padding: int | str = "SAME"
    kind = "conv"


@dataclass(frozen=True)
class Pooling:
    """pool and avgpool: size × size windows, no padding."""

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
    """drop: zeroes a fraction `rate` of the activations in training."""

    rate: float
    kind = "drop"


@dataclass(frozen=True)
class Normalization:
    """bn: batch normalisation."""

    kind = "bn"


@dataclass(frozen=True)
class Dense:
    """fc: a fully connected layer of `units`."""

    units: int
    kind = "fc"


Layer = Convolution | Pooling | GlobalAverage | Dropout | Normalization | Dense


def parse(pattern: str) -> tuple[Layer, ...]:
    """Returns the layers of a pattern, with groups expanded.

    Raises:
        UserError: a syntax error, an impossible order (no classifier at the end, or a spatial layer after gap or fc),
            or more than 1000 layers.

    >>> len(parse("[[conv3-64]*2 pool]*3 [fc512]*1 fc10"))
    11
    """
    placed = _Parser(pattern).pattern()
    _check_order(pattern, placed)
    return tuple(layer for layer, _ in placed)


class _Token(NamedTuple):
    text: str
    place: int  # of its first character, counted from 1


class _Form(NamedTuple):
    """How a layer is written: its syntax in words, its regular expression, and a factory that takes the groups."""

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
_NO_LAYER = "not a layer (conv, pool, avgpool, gap, drop, bn, fc or a group in [ ])"


class _Parser:
    """Recursive-descent parser: one method per grammar rule, which reads its tokens and returns its layers."""

    def __init__(self, text: str):
        self.text = text
        found = re.finditer(r"[][]|\*[0-9]*|[^][*\s]+", text)
        end = _Token("", len(text) + 1)
        self.tokens = [*(_Token(match[0], match.start() + 1) for match in found), end]
        self.next = 0

    def pattern(self) -> list[tuple[Layer, _Token]]:
        layers = self._items(depth=0)
        if self._token().text == "]":
            raise _error(self.text, self._token(), "no [ opens this group; drop the ]")
        return layers

    def _items(self, depth: int) -> list[tuple[Layer, _Token]]:
        layers: list[tuple[Layer, _Token]] = []
        while self._token().text not in ("", "]"):
            start = self._token()
            item, times = self._item(depth), self._times()
            if len(layers) + len(item) * times > MAX_LAYERS:
                raise _error(self.text, start, f"more than {MAX_LAYERS} layers; repeat it less often")
            layers += item * times
        return layers

    def _item(self, depth: int) -> list[tuple[Layer, _Token]]:
        token = self._read()
        if token.text != "[":
            return [(self._layer(token), token)]
        if depth == MAX_DEPTH:
            raise _error(self.text, token, f"groups nest more than {MAX_DEPTH} deep; use fewer brackets")
        layers = self._items(depth + 1)
        if self._token().text != "]":
            raise _error(self.text, token, "no ] closes this group; add it")
        if not layers and self.tokens[self.next - 1] == token:
            raise _error(self.text, self._token(), "the group is empty; fill it or drop it")
        self._read()
        return layers

    def _times(self) -> int:
        if not self._token().text.startswith("*"):
            return 1
        token = self._read()
        if token.text == "*" or len(token.text) > 7:
            raise _error(self.text, token, "write a number of at most 6 digits right after *, such as *3")
        return int(token.text[1:])

    def _layer(self, token: _Token) -> Layer:
        for form in _FORMS.values():
            if match := re.fullmatch(form.expression, token.text):
                return form.make(*match.groups())
        for kind, form in _FORMS.items():
            if token.text.startswith(kind):
                raise _error(self.text, token, f"write {form.words}")
        close = nearest(token.text.rstrip("0123456789-."), _FORMS)
        hint = f"perhaps you meant {' or '.join(close)}" if close else "see docs/pattern.md"
        raise _error(self.text, token, f"{_NO_LAYER}; {hint}")

    def _token(self) -> _Token:
        return self.tokens[self.next]

    def _read(self) -> _Token:
        self.next += 1
        return self.tokens[self.next - 1]


def _check_order(text: str, placed: Sequence[tuple[Layer, _Token]]) -> None:
    """Raises UserError if the layers do not form a network."""
    ended: _Token | None = None
    for layer, token in placed:
        if ended and isinstance(layer, Convolution | Pooling | GlobalAverage):
            words = f"only fc, drop and bn may follow {ended.text} at character {ended.place}; move it before that"
            raise _error(text, token, words)
        if isinstance(layer, Dense | GlobalAverage):
            ended = ended or token
    kinds = [layer.kind for layer, _ in placed]
    if kinds[-1:] != ["fc"] and kinds[-2:] != ["conv", "gap"]:
        token = placed[-1][1] if placed else _Token("", 1)
        raise _error(text, token, "the pattern must end with fc{classes}, or conv and gap; add one, such as fc10")


def _error(text: str, token: _Token, words: str) -> UserError:
    """Builds the error that points at a token."""
    what = repr(token.text) if token.text else "the end"
    return UserError(f"pattern {text!r}, character {token.place} ({what}): {words}")
