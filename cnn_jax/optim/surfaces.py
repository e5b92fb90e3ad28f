"""Functions of two variables with known minima, on which the paths of optimizers are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from cnn_jax.errors import unknown


@dataclass(frozen=True)
class Surface:
    """A function to minimize and the part of the plane that a picture shows.

    Attributes:
        name: as on the command line.
        formula: the function as it is printed.
        value: (x, y) → f, elementwise, on arrays of any one shape.
        x_range: left and right edge of the picture.
        y_range: lower and upper edge.
        start: where paths begin.
        minima: the points where f is lowest.
        local_minima: other minima in the picture worth marking.
    """

    name: str
    formula: str
    value: Callable[[Any, Any], Any]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]
    local_minima: tuple[tuple[float, float], ...] = ()

    def at(self, w: Any) -> Any:
        """Value at points w, (…, 2) → (…)."""
        return self.value(w[..., 0], w[..., 1])

    def contains(self, point: Any) -> Any:
        """Whether points (…, 2) lie in the picture; not if they are NaN."""
        (left, right), (low, high) = self.x_range, self.y_range
        x, y = point[..., 0], point[..., 1]
        return (left <= x) & (x <= right) & (low <= y) & (y <= high)


def _bowl(x: Any, y: Any) -> Any:
    return 0.5 * (x**2 + 4 * y**2)


def _ravine(x: Any, y: Any) -> Any:
    """Curvature 1 along the diagonal and 50 across it: a rate for each coordinate does not straighten it."""
    return 0.25 * (x + y) ** 2 + 12.5 * (x - y) ** 2


def _saddle(x: Any, y: Any) -> Any:
    """Saddle point at the origin. Unlike x² − y², it has minima, so that fast is not the same as far."""
    return 0.5 * x**2 - 0.5 * y**2 + 0.25 * y**4


def _beale(x: Any, y: Any) -> Any:
    """Beale 1958; nearly flat between steep walls."""
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _rosenbrock(x: Any, y: Any) -> Any:
    """Rosenbrock 1960; the start is his, too."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _rastrigin(x: Any, y: Any) -> Any:
    """Rastrigin 1974; a local minimum near every point of whole numbers."""
    return 20 + x**2 + y**2 - 10 * (jnp.cos(2 * jnp.pi * x) + jnp.cos(2 * jnp.pi * y))


def _two_minima(x: Any, y: Any) -> Any:
    return (x**2 - 1) ** 2 + 0.3 * x + 0.5 * y**2


# The roots of 4x(x² − 1) + 0.3: the lower minimum, and the one on the side of the start.
_LOWER, _HIGHER = -1.0355787140888537, 0.9601495555191055

SURFACES: dict[str, Surface] = {
    surface.name: surface
    for surface in (
        Surface("bowl", "½(x² + 4y²)", _bowl, (-2, 2), (-1.5, 1.5), (-1.7, 1.2), ((0, 0),)),
        Surface("ravine", "¼(x + y)² + 12.5(x − y)²", _ravine, (-2, 2), (-2, 2), (-1.8, -1.2), ((0, 0),)),
        Surface("saddle", "½x² − ½y² + ¼y⁴", _saddle, (-2, 2), (-1.6, 1.6), (-1.7, 0.01), ((0, 1), (0, -1))),
        Surface(
            "beale",
            "(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²",
            _beale,
            (-2, 4),
            (-2.2, 2),
            (1.0, 1.5),
            ((3, 0.5),),
        ),
        Surface("rosenbrock", "(1 − x)² + 100(y − x²)²", _rosenbrock, (-2, 2), (-1, 3), (-1.2, 1.0), ((1, 1),)),
        Surface(
            "rastrigin",
            "20 + x² + y² − 10(cos 2πx + cos 2πy)",
            _rastrigin,
            (-4.2, 4.2),
            (-4.2, 4.2),
            (-3.4, 2.4),
            ((0, 0),),
        ),
        Surface(
            "two_minima",
            "(x² − 1)² + 0.3x + ½y²",
            _two_minima,
            (-1.8, 1.8),
            (-1.4, 1.4),
            (1.6, 1.0),
            ((_LOWER, 0),),
            ((_HIGHER, 0),),
        ),
    )
}


def get_surface(name: str) -> Surface:
    """Returns the surface of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SURFACES:
        raise unknown("surface", name, SURFACES)
    return SURFACES[name]
