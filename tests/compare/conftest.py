"""Intervals of fewer resamples, so that the tests are quick."""

from collections.abc import Iterator

import pytest

from tbnn.compare import statistics


@pytest.fixture(scope="session", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP", 999)
        statistics._interval.cache_clear()
        yield
    statistics._interval.cache_clear()
