"""How far a run may lie from the recorded mean: the scale is that of the seeds' own spread.

With R seeds whose values at a point have the pooled standard deviation s, a further run of the same recipe differs from
their mean by s sqrt(1 + 1/R) on average: by its own spread, and by what the mean of R misses. The tolerance is three
times that. s is pooled over all points of a quantity, for R values at one point alone say little of a spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

from franca.reproduce.curve import Curve
from franca.reproduce.errors import ReproduceError

SIGMAS = 3.0
FLOOR = 0.002  # of a quantity's mean size: seeds that happen to agree don't ask for more than that


@dataclass(frozen=True)
class Tolerance:
    """A deviation in the quantity's own unit, and where it comes from, in words."""

    value: float
    origin: str


def tolerances(seeds: Mapping[int, Curve], given: Mapping[str, float]) -> dict[str, Tolerance]:
    """One for each quantity, ``given`` ones first.

    Raises:
        ReproduceError: one seed alone tells no spread, and not every quantity's tolerance is given.
    """
    quantities = list(next(iter(seeds.values())))
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
        name: Tolerance(given[name], "given") if name in given else _from_spread(name, seeds) for name in quantities
    }


def _from_spread(name: str, seeds: Mapping[int, Curve]) -> Tolerance:
    points = [[curve[name][step] for curve in seeds.values()] for step in next(iter(seeds.values()))[name]]
    values = [[value for value in point if value is not None] for point in points]
    spread = sqrt(fmean(variance(point) for point in values))
    value = SIGMAS * spread * sqrt(1 + 1 / len(seeds))
    floor = FLOOR * fmean(abs(fmean(point)) for point in values)
    if value < floor:
        return Tolerance(floor, f"{FLOOR:.1%} of its mean size: the seeds lie closer together than that")
    return Tolerance(
        value, f"{SIGMAS:g} x {spread:.3g} x sqrt(1 + 1/{len(seeds)}), the spread of seeds {_words(seeds)}"
    )


def _words(seeds: Sequence[int] | Mapping[int, Curve]) -> str:
    return ", ".join(map(str, seeds))
