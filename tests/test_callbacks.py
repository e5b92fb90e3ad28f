import math

import pytest

from cnn_jax.errors import UserError
from cnn_jax.training.callbacks import EarlyStopping


def stops(values, patience, higher=True):
    """Returns the index of the evaluation that stops training, or None."""
    stopping = EarlyStopping("m", higher, patience)
    for step, value in enumerate(values):
        if stopping.on_evaluation(step, {"m": value, "other": 0.0}, None):
            return step
    return None


@pytest.mark.parametrize(
    "values, patience, higher, expected",
    [
        ([0.1, 0.2, 0.3, 0.4], 1, True, None),
        ([0.1, 0.2, 0.1], 1, True, 2),
        ([0.5, 0.5], 1, True, 1),  # a tie is not an improvement
        ([0.5, 0.4, 0.6, 0.5, 0.6, 0.6], 3, True, 5),  # patience restarts at each new best
        ([0.5, 0.4, 0.3, 0.4, 0.4], 2, False, 4),
        ([0.5, 0.6, 0.7], 2, False, 2),
        ([0.5, math.nan, math.nan], 2, True, 2),
        ([math.nan, math.nan, 0.9], 2, True, 1),
        ([math.nan, 0.9, 0.8], 2, False, None),
        ([0.0, 0.0], 1, True, 1),  # 0 is an ordinary value
        ([-1.0, -0.5], 1, True, None),
    ],
)
def test_stops_after_patience_evaluations_without_improvement(values, patience, higher, expected):
    assert stops(values, patience, higher) == expected


def test_a_resumed_run_stops_where_an_uninterrupted_one_does():
    values, patience = [0.5, 0.6, 0.6, 0.4, 0.61, 0.3, 0.3, 0.3], 3
    end = stops(values, patience)
    assert end == 7
    for cut in range(1, end):
        resumed = EarlyStopping("m", True, patience)
        assert not any([resumed.on_evaluation(s, {"m": v}, None) for s, v in enumerate(values[:cut])])
        later = [s for s in range(cut, len(values)) if resumed.on_evaluation(s, {"m": values[s]}, object())]
        assert later[0] == end


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_below_one_is_refused(patience):
    with pytest.raises(UserError, match="`patience`"):
        EarlyStopping("m", True, patience)


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(UserError, match="does not report the metric 'f1': choose one of accuracy, loss"):
        EarlyStopping("f1", True, 1).on_evaluation(1, {"loss": 1.0, "accuracy": 0.5}, None)
