"""How far a run may lie from the recorded mean: the scale is that of the seeds' own spread.

With R seeds whose values have the standard deviation s, a further run of the same recipe differs from their mean by
s sqrt(1 + 1/R) on average: by its own spread, and by what the mean of R misses. The tolerance is three times that.

R values at one point alone say little of s, so variances are pooled over all points of a quantity. But a quantity can
be noisier in one part of its curve than in another: seeds of the quickstart lie twice as far apart in KoLeo's first
half as in its second. So where any three successive points that hold the point have the larger pooled variance, that
one counts.

A term that is switched off is 0 in every seed. It keeps a tolerance just above rounding, so that a run where it is
something else differs.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

from franca.reproduce.curve import Curve
from franca.reproduce.errors import ReproduceError

SIGMAS = 3.0
NEIGHBOURS = 3  # successive points whose variances are pooled
FLOOR = 0.002  # of a quantity's mean size: seeds that happen to agree don't ask for more than that
LEAST = 1e-6  # in the quantity's own unit: of one that is 0 in all seeds
RULE = (
    f"{SIGMAS:g} s sqrt(1 + 1/R); s: standard deviation of the R seeds, pooled over all points or, where that is more, "
    f"over {NEIGHBOURS} successive ones that hold the point; at least {FLOOR:.1%} of the quantity's mean size, "
    f"and {LEAST:g}"
)

Tolerances = Mapping[str, Mapping[int, float]]  # quantity -> step -> a deviation in the quantity's own unit


def tolerances(seeds: Mapping[int, Curve], given: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """At each point of each quantity; of ``given`` quantities the same at all.

    Raises:
        ReproduceError: one seed alone tells no spread, and not every quantity's tolerance is given.
    """
    quantities = next(iter(seeds.values()))
    unknown = [name for name in given if name not in quantities]
    if unknown:
        raise ReproduceError(f"--tolerance {unknown[0]}: not a quantity of this run; there are {', '.join(quantities)}")
    missing = [name for name in quantities if name not in given]
    if len(seeds) < 2 and missing:
        raise ReproduceError(
            f"one seed ({next(iter(seeds))}) tells no spread: record two or more (three are better), or give "
            + " ".join(f"--tolerance {name}=VALUE" for name in missing)
        )
    return {
        name: dict.fromkeys(quantities[name], given[name]) if name in given else _from_spread(name, seeds)
        for name in quantities
    }


def rule_of(given: Mapping[str, float]) -> str:
    """Where tolerances come from, in words."""
    return "; ".join([RULE, *(f"{name}: {value:g}, given" for name, value in given.items())])


def _from_spread(name: str, seeds: Mapping[int, Curve]) -> dict[int, float]:
    steps = sorted(next(iter(seeds.values()))[name])
    points = [[curve[name][step] for curve in seeds.values()] for step in steps]
    values = [[value for value in point if value is not None] for point in points]
    floor = max(FLOOR * fmean(abs(fmean(point)) for point in values), LEAST)
    spread = _pooled([_variance(point) for point in values])
    scale = SIGMAS * sqrt(1 + 1 / len(seeds))
    return {step: max(scale * sqrt(one), floor) for step, one in zip(steps, spread, strict=True)}


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)  # statistics.variance is exact, and ten times as slow
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _pooled(variances: Sequence[float]) -> list[float]:
    """At each point the largest mean variance of those ranges of points that hold it: all, and NEIGHBOURS."""
    last = max(len(variances) - NEIGHBOURS, 0)
    ranges = [fmean(variances[first : first + NEIGHBOURS]) for first in range(last + 1)]
    return [
        max(fmean(variances), *ranges[max(number - NEIGHBOURS + 1, 0) : min(number, last) + 1])
        for number in range(len(variances))
    ]
