"""How a metric is shown: the same on the screen, in plots and in the report."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How a task's metric is shown.

    Attributes:
        label: its axis label in plots.
        percent: whether it is a share in [0, 1], shown in per cent.

    >>> Metric("accuracy", percent=True).text(0.5), Metric("cross-entropy (nats)").text(0.5)
    ('50.00%', '0.5000')
    """

    label: str
    percent: bool = False

    @property
    def axis(self) -> str:
        """The axis label, with the unit."""
        return f"{self.label} (%)" if self.percent else self.label

    @property
    def scale(self) -> float:
        """Factor from a value to its place on the axis."""
        return 100.0 if self.percent else 1.0

    def text(self, value: float) -> str:
        """Formats a value.

        >>> Metric("cross-entropy (nats)").text(691788812992.5175)  # of a network that diverges
        '6.918e+11'
        """
        return f"{value:.2%}" if self.percent else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"

    def cell(self, value: float) -> str:
        """Formats a value that is not negative in six characters.

        >>> [Metric("accuracy", percent=True).cell(value) for value in (0.0712, 0.5, 1.0)]
        [' 7.12%', '50.00%', '100.0%']
        >>> [Metric("cross-entropy (nats)").cell(value) for value in (0.02, 2.3026, 1420.1639, 6.9e11)]
        ['0.0200', '2.3026', '1420.2', ' 7e+11']
        """
        if self.percent:
            return f"{f'{100 * value:5.2f}'[:5]}%"
        return f"{value:#6.5g}" if 1 <= value < 99999.5 else f"{value:6.0e}" if value > 1 else f"{value:6.4f}"
