"""Numbers as people read them, and the interval around an accuracy."""

import math
from typing import Any

MISSING = "–"
NO_BREAK = "\u00a0"


def wilson(accuracy: float, samples: int) -> tuple[float, float]:
    """The 95 % Wilson interval of an accuracy measured on ``samples`` recordings.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    >>> wilson(0.5, 100)
    (0.4038315303659956, 0.5961684696340044)
    """
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(round(accuracy * samples), samples).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def interval_text(accuracy: float | None, samples: int | None) -> str:
    """The Wilson interval as "93.2–96.5 %", or a dash when the number of recordings is unknown."""
    if not _finite(accuracy) or not samples:
        return MISSING
    low, high = wilson(float(accuracy or 0), int(samples))
    return f"{100 * low:.1f}–{100 * high:.1f}{NO_BREAK}%"


def count(value: Any) -> str:
    """A whole number with thousands separators: "1,234,567"."""
    return f"{round(value):,}" if _finite(value) else number(value)


def number(value: Any) -> str:
    """A number to four significant digits, or to the last digit when it is whole; other things as they are."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) and not hasattr(value, "__float__"):
        return str(value)
    x = float(value)
    if not math.isfinite(x):
        return str(x)
    if x == round(x) and abs(x) < 1e15:
        return f"{round(x):,}"
    return f"{x:.3e}" if abs(x) < 1e-3 or abs(x) >= 1e6 else f"{x:,.4g}" if abs(x) < 1000 else f"{x:,.1f}"


def share(value: Any) -> str:
    """A fraction in percent: "94.72 %", and "0.031 %" for a small one."""
    if not _finite(value):
        return number(value)
    x = 100 * float(value)
    return f"{x:.2f}{NO_BREAK}%" if x == 0 or abs(x) >= 0.1 else f"{x:.2g}{NO_BREAK}%"


def brief_share(value: float) -> str:
    """A fraction in percent to one decimal, or to two digits when it is small: "8.9 %", "0.042 %"."""
    x = 100 * value
    return f"{x:.1f}{NO_BREAK}%" if x == 0 or x >= 1 else f"{x:.2g}{NO_BREAK}%"


def size(value: Any) -> str:
    """A number of bytes: "512 B", "12.8 kB", "3.20 MB" (1 kB = 1000 B)."""
    return MISSING if not _finite(value) else f"{round(value):,}{NO_BREAK}B" if value < 1000 else short(value) + "B"


def short(value: Any) -> str:
    """A large number to three digits: "950", "12.8 k", "3.20 M"; the unit follows directly."""
    if not _finite(value):
        return number(value)
    x = float(value)
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        # 999.5 k would be printed as "1e+03 k": it belongs to the next prefix.
        if abs(x) >= 0.9995 * 10**power:
            scaled = x / 10**power
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{NO_BREAK}{prefix}"
    return number(round(x, 1))


def ratio(dense: float, small: float) -> str:
    """How many times smaller: "31.6×", or a dash."""
    if small <= 0:
        return MISSING
    times = dense / small
    return f"{times:,.0f}×" if times >= 1000 else f"{times:.3g}×"


def duration(seconds: float) -> str:
    """Seconds as people read them: "42 s", "12.3 min", "5.0 h".

    >>> duration(42), duration(738), duration(18000)
    ('42 s', '12.3 min', '5.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shape(value: Any) -> str:
    """A shape as "2 × 34 × 34"; other things as they are."""
    return f"{NO_BREAK}×{NO_BREAK}".join(str(n) for n in value) if isinstance(value, list | tuple) else number(value)


def _finite(value: Any) -> bool:
    return value is not None and hasattr(value, "__float__") and math.isfinite(float(value))
