"""How sure a difference between runs is: spread, intervals, paired tests, seeds needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from research.errors import ConfigError

Numbers = Sequence[float] | npt.NDArray[np.float64]

EXACT_PAIRS = 14  # 2^14 sign patterns still fit one small matrix
RANDOM_FLIPS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A sample in five numbers: mean, standard deviation (n - 1), n, and an interval of the mean.

    `sd`, `low` and `high` are NaN for a single value: one run has no spread. All but `n` are NaN
    where a value is not finite: a failed run is not left out unseen.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, values: Numbers, *, confidence: float = 0.95, seed: int = 0) -> Summary:
        """Summarise values [n], n >= 1; low and high by percentile bootstrap of the mean.

        The bootstrap interval is too narrow for few values (by sqrt((n - 1) / n) at least), so `sd`
        and `n` are what tables show. Raises ConfigError for an empty sample.
        """
        sample = np.asarray(values, np.float64)
        if sample.ndim != 1 or not sample.size:
            raise ConfigError(f"A summary needs a list of values, got shape {sample.shape}.")
        if not np.isfinite(sample).all():
            return cls(mean=math.nan, sd=math.nan, n=sample.size, low=math.nan, high=math.nan)
        mean = float(sample.mean())
        if sample.size == 1:
            return cls(mean=mean, sd=math.nan, n=1, low=math.nan, high=math.nan)
        low, high = bootstrap_interval(sample, confidence=confidence, seed=seed)
        return cls(mean=mean, sd=float(sample.std(ddof=1)), n=sample.size, low=low, high=high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Is the mean of a - b zero? Two p-values, because each fails where the other does not.

    `p` is of the sign-flip permutation test, which assumes only symmetry but cannot fall below
    `least_p` = 2 / 2^n; `method` says how it was found. `t_p` is of the paired t-test, which
    assumes normal differences; 1 where all are 0. `dz` is the effect size, mean over standard
    deviation of the differences.
    """

    difference: float
    p: float
    method: str
    t_p: float
    dz: float
    n: int

    @property
    def least_p(self) -> float:
        """The smallest p that any differences of this many pairs could give."""
        return max(2.0 ** (1 - self.n), 1 / (RANDOM_FLIPS + 1) if self.n > EXACT_PAIRS else 0.0)

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4g} (dz = {self.dz:.2f}, n = {self.n}); {self.method}: "
            f"p = {self.p:.3g}, least possible {self.least_p:.2g}; "
            f"paired t-test: p = {self.t_p:.3g}"
        )


def bootstrap_interval(
    values: Numbers,
    statistic: Callable[..., npt.NDArray[np.float64]] = np.mean,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over values [N, ...] (Efron, 1979).

    `statistic(samples, axis=1)` maps samples [R, N, ...] to [R]; np.mean, np.median and np.std do.
    """
    sample = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // max(1, sample.size))
    found = []
    for start in range(0, resamples, chunk):
        shape = (min(chunk, resamples - start), len(sample))
        found.append(statistic(sample[generator.integers(0, len(sample), shape)], axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def paired_test(a: Numbers, b: Numbers, *, seed: int = 0) -> PairedTest:
    """Two-sided test of a - b over pairs [n]: the same seeds, folds or examples under two arms.

    Exact over all 2^n sign patterns for n <= 14, else 100,000 random ones (the observed one counted
    in, Phipson & Smyth, 2010). Raises ConfigError for unequal lengths, n < 2 or values not finite.
    """
    from scipy import stats  # takes seconds to import

    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size < 2:
        raise ConfigError(
            f"A paired test needs two lists of equal length, 2 at least, got shapes {first.shape}"
            f" and {second.shape}."
        )
    differences = first - second
    if not np.isfinite(differences).all():
        raise ConfigError("A paired test needs finite values; drop the pairs of the failed runs.")
    mean, sd, n = float(differences.mean()), float(differences.std(ddof=1)), first.size
    if sd < 1e-12 * max(np.abs(first).max(), np.abs(second).max()):
        sd = 0.0  # the differences are one number, but for rounding
    dz = mean / sd if sd else (math.copysign(math.inf, mean) if mean else math.nan)
    t = dz * math.sqrt(n)
    exact = n <= EXACT_PAIRS
    return PairedTest(
        difference=mean,
        p=_exact_flips(differences) if exact else _random_flips(differences, seed),
        method="exact sign flips" if exact else f"{RANDOM_FLIPS:,} random sign flips",
        t_p=1.0 if math.isnan(t) else float(2 * stats.t.sf(abs(t), n - 1)),
        dz=dz,
        n=n,
    )


def _as_extreme(sums: npt.NDArray[np.float64], differences: npt.NDArray[np.float64]) -> int:
    """How many sums are at least as far from 0 as the observed one, up to rounding."""
    rounding = 1e-12 * np.abs(differences).sum()
    return int((np.abs(sums) >= abs(differences.sum()) - rounding).sum())


def _exact_flips(differences: npt.NDArray[np.float64]) -> float:
    n = differences.size
    patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return _as_extreme((1 - 2 * patterns) @ differences, differences) / 2**n


def _random_flips(differences: npt.NDArray[np.float64], seed: int) -> float:
    moved = differences[differences != 0]  # a tie stays 0 under every sign
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // max(1, moved.size))
    count = 0
    for start in range(0, RANDOM_FLIPS, chunk):
        shape = (min(chunk, RANDOM_FLIPS - start), moved.size)
        signs = 1 - 2 * generator.integers(0, 2, shape, dtype=np.int8)
        count += _as_extreme(signs @ moved, moved)
    return (1 + count) / (1 + RANDOM_FLIPS)


def holm(p_values: Numbers) -> list[float]:
    """p-values adjusted for testing them all, in their order (Holm, 1979).

    [0.01, 0.04] -> [0.02, 0.04]: the smallest is doubled, the next one stands.
    Raises ConfigError for a value outside [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"Holm's correction needs p-values in [0, 1], got {p.tolist()}.")
    order = np.argsort(p, kind="stable")
    steps = p[order] * (p.size - np.arange(p.size))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def power_of_pairs(n: int, dz: float, alpha: float = 0.05) -> float:
    """Chance that a two-sided paired t-test of n pairs finds an effect dz (noncentral t)."""
    from scipy import stats  # takes seconds to import

    limit = stats.t.isf(alpha / 2, n - 1)
    shift = abs(dz) * math.sqrt(n)
    upper, lower = stats.nct.sf(limit, n - 1, shift), stats.nct.cdf(-limit, n - 1, shift)
    return float(upper + lower)


def seeds_needed(
    sd_difference: float, difference: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """The fewest pairs with which a paired t-test finds `difference` with chance `power`.

    `sd_difference` is the standard deviation of the differences between pairs, in the same unit.
    Raises ConfigError unless both are above 0 and power and alpha lie in (0, 1).
    """
    if not (sd_difference > 0 and abs(difference) > 0 and 0 < power < 1 and 0 < alpha < 1):
        raise ConfigError(
            "seeds_needed expects sd_difference > 0, difference other than 0, power and alpha in"
            f" (0, 1); got {sd_difference}, {difference}, {power}, {alpha}."
        )
    dz = abs(difference) / sd_difference
    enough = 2
    while power_of_pairs(enough, dz, alpha) < power:
        enough *= 2
    too_few = max(1, enough // 2)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if power_of_pairs(middle, dz, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough
