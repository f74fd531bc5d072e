"""Settings of frames: what is refused, and what follows from them."""

import re

import numpy as np
import pytest

from tbnn.data.events import Sensor
from tbnn.data.frames import FrameSpec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "bin_width, bins, count: expected exactly one of them, got none"),
        ({"bins": 3, "count": 2}, "bin_width, bins, count: expected exactly one of them, got bins, count"),
        ({"bin_width": 10}, "steps: expected the number of frames with bin_width, got none"),
        ({"bins": 3, "steps": 3}, "steps, hop: expected neither with bins, which is the number of frames"),
        ({"bins": 0}, "bins: expected at least 1, got 0"),
        ({"bins": 2.0}, "bins: expected a whole number, got 2.0"),
        ({"bins": True}, "bins: expected a whole number, got True"),
        ({"bins": 2, "planes": 9}, "planes: expected 1 to 8, got 9"),
        ({"bins": 2, "late": "never"}, "late: expected error or cut, got 'never'"),
        ({"bins": 2, "size": (0, 3)}, "size: expected a height and a width of at least 1, got (0, 3)"),
        ({"bins": 2, "size": [3]}, "size: expected a height and a width of at least 1, got [3]"),
        ({"bins": 2, "tau": 3.0}, "tau, level: expected both or neither, got tau 3.0 and level None"),
        ({"bins": 2, "tau": 3.0, "level": 1.0}, "level: expected a value in (0, 1), got 1.0"),
        (
            {"bins": 2, "tau": 3.0, "level": 0.9},
            "tau, level: expected -tau * ln(level) of at least 1 us, got 3.0 and 0.9",
        ),
        ({"bins": 2, "planes": 2, "at_least": 2}, "at_least, planes, tau: expected one of them at most, got several"),
        (
            {"bin_width": 2**40, "steps": 2**22},
            "steps: expected frames that end before 2^62, got 4194304 of 1099511627776",
        ),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        FrameSpec(**settings)


def test_shape_covered_and_horizon():
    spec = FrameSpec(bin_width=10, hop=5, steps=6, planes=3, size=[17, 8])
    assert spec.shape((2, 34, 34)) == Sensor(6, 17, 8)
    assert hash(spec) == hash(spec.replace())
    assert FrameSpec(bins=2, polarity="merge").shape((2, 34, 34)) == Sensor(1, 34, 34)
    assert [spec.covered(np.array([0, last])) for last in (0, 4, 5, 24, 25, 99)] == [1, 1, 2, 5, 6, 6]
    assert FrameSpec(count=4, steps=9).covered(np.arange(9)) == 3
    assert FrameSpec(bins=2, tau=1000.0, level=0.5).horizon == 693
    with pytest.raises(ValueError, match=re.escape("size: expected at most the sensor's (3, 7), got (17, 8)")):
        spec.shape((2, 3, 7))
