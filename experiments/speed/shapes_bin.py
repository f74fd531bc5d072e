"""BIN: one packed product against torch's in every number format, and against what the core can do at most."""

import numpy as np
from ceilings import ceiling, measure_ceilings
from products import (
    BF16,
    CHOSEN,
    DENSE,
    EVENTS,
    FP32,
    INT8,
    Size,
    check,
    float_sides,
    int8_side,
    operands,
    packed_sides,
)
from suite import Part, Settings, point
from timing import row

SIZE: Size = (256, 4096, 1024)
TINY: Size = (16, 128, 80)
DENSITIES = (0.05, 0.1, 0.25, 0.3, 0.5)
AIMS = {FP32: 45.0}
CEILING = "AND, popcount, add in registers"


def measure(settings: Settings) -> Part:
    """The ceilings, then the product at every density of spikes."""
    part = Part(facts={"ceilings": measure_ceilings(settings.threads, settings.tiny), "ceiling_shares": []})
    size = TINY if settings.tiny else SIZE
    with ceiling(settings.threads, size[0] * size[1] * size[2]) as at_most:
        for density in DENSITIES[:1] if settings.tiny else DENSITIES:
            given = operands(size, density)
            sides = {**packed_sides(given), **float_sides(given), **int8_side(given)}
            shape = f"BIN ({size[0]}x{size[1]})({size[1]}x{size[2]}), {density:.0%} spikes, {settings.label}"
            check(shape, sides, given.product)
            times = settings.times({**sides, CEILING: at_most.run}, rounds=7, repeats=15)
            times[CEILING] = [seconds / at_most.longer for seconds in times[CEILING]]
            _add(shape, size, density, times, part)
    return part


def _add(shape: str, size: Size, density: float, times: dict[str, list[float]], part: Part) -> None:
    """Rows against torch, and each way's share of the ceiling, round by round."""
    about = {"shape": shape, "density": density}
    part.rows += [
        {**about, **row(times, CHOSEN, other, AIMS.get(other))} for other in (FP32, BF16, INT8) if other in times
    ]
    for way in (DENSE, EVENTS, CHOSEN):
        reached = point(f"BIN, {density:.0%}", way, size, float(np.median(times[way])))
        shares = [most / mine for most, mine in zip(times[CEILING], times[way], strict=True)]
        part.facts["ceiling_shares"].append(
            {**about, "way": way, "share": float(np.median(shares)), "share_min": min(shares), "share_max": max(shares)}
        )
        if way != CHOSEN:
            part.points.append(reached)
        print(
            f"{shape}: {way}: {reached.bit_macs_per_s / 1e12:.2f} T bit-MAC/s, {np.median(shares):.0%} of the ceiling"
        )
