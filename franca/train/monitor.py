"""Is it learning? A few numbers from the teacher's assignments and features, and a verdict in words."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from franca.objective import LossReport, Targets

# A share of the possible information. Runs that learn show 0.1 to 0.8; outputs that ignore the image, 0.001.
LEAST_INFORMATION = 0.02


@dataclass
class MonitorConfig:
    """When the run looks at itself."""

    every: int = 100  # steps between readings; 0: never
    patience: int = 3  # bad readings in a row before the verdict is "collapsing"
    first_verdict: int = 300  # steps (or the warm-up, if longer) in which a bad start is "too early to say"

    def __post_init__(self) -> None:
        if self.every < 0 or self.patience < 1 or self.first_verdict < 0:
            raise ValueError(
                f"monitor.every={self.every} and monitor.first_verdict={self.first_verdict} must not be negative, "
                f"monitor.patience={self.patience} must be at least 1"
            )


@dataclass(frozen=True)
class Reading:
    """What one batch shows. Lists run over the Matryoshka levels, narrowest first; all values are plain numbers."""

    assignment_information: list[float]  # share of the possible information that a class token's assignment carries
    assignment_entropy: list[float]  # mean entropy of one assignment over log K; 1: spread over all prototypes
    prototypes_used: list[int]  # prototypes that are some class token's first choice, in this batch
    effective_rank: float  # of the teacher's class tokens
    feature_similarity: float  # mean cosine between the teacher's class tokens of different crops; 1: all the same
    agreement: float  # share of crops whose first choice is the same for teacher and student, widest level

    def metrics(self) -> dict[str, float]:
        """Flat names and values, levels numbered from the narrowest."""
        flat: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, list):
                flat |= {f"{name}/{level}": float(entry) for level, entry in enumerate(value)}
            else:
                flat[name] = float(value)
        return flat


class Health(StrEnum):
    """The verdicts."""

    EARLY = "too early to say"
    HEALTHY = "healthy"
    COLLAPSING = "collapsing"


@dataclass(frozen=True)
class Verdict:
    """A verdict and the sentence that explains it."""

    health: Health
    reason: str


@torch.no_grad()
def take_reading(targets: Targets, report: LossReport) -> Reading:
    """Read one batch: the teacher's assignments (before the student saw them) and the student's answers."""
    assignments = [level.dense() for level in targets.crop]
    first_choice = [level.argmax(dim=1) for level in assignments]
    return Reading(
        assignment_information=[assignment_information(level) for level in assignments],
        assignment_entropy=[float(_entropy(level).mean()) / math.log(level.shape[1]) for level in assignments],
        prototypes_used=[int(choice.unique().numel()) for choice in first_choice],
        effective_rank=effective_rank(targets.class_tokens),
        feature_similarity=feature_similarity(targets.class_tokens),
        agreement=float((first_choice[-1] == report.choices.roll(len(report.choices) // 2)).float().mean()),
    )


def assignment_information(assignments: Tensor) -> float:
    """Mutual information between row and prototype over its largest possible value, for assignments (N, K).

    Entropy of the mean row minus mean entropy of the rows: 1 when every row has prototypes of its own, 0 when
    all rows are the same, that is when the assignment says nothing about the image.
    """
    rows, prototypes = assignments.shape
    information = _entropy(assignments.mean(dim=0, keepdim=True)).squeeze() - _entropy(assignments).mean()
    return max(float(information), 0.0) / math.log(min(rows, prototypes))


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007) of centred rows (N, D).

    Rows that agree to within rounding count as one direction: rank 1. NaN when a value is not finite.
    """
    features = features.float()
    if not torch.isfinite(features).all():
        return math.nan
    scale = torch.linalg.matrix_norm(features)
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    values = values[values > 1e-4 * scale]
    if not len(values):
        return 1.0
    return float(_entropy((values / values.sum()).unsqueeze(0)).exp())


def feature_similarity(features: Tensor) -> float:
    """Mean cosine over all pairs of different rows, (N, D) with N > 1."""
    directions = torch.nn.functional.normalize(features.float(), dim=1)
    rows = len(directions)
    return float((directions.sum(dim=0).square().sum() - rows) / (rows * (rows - 1)))


class Monitor:
    """Takes readings and remembers what was wrong with the last ones.

    Args:
        config: when and how patiently.
        complaints: of the readings before this process started (``complaint`` entries of metrics.jsonl), oldest first.
        warmup: steps of the learning-rate warm-up; before its end a run that never looked good is no collapse yet.
    """

    def __init__(self, config: MonitorConfig, complaints: list[str], warmup: int) -> None:
        self.patience = config.patience
        self.first_verdict = max(config.first_verdict, warmup)
        self.complaints = complaints

    def observe(self, step: int, targets: Targets, report: LossReport) -> dict[str, float | str]:
        """A line for metrics.jsonl: the reading, its complaint, and the verdict up to now."""
        reading = take_reading(targets, report)
        self.complaints.append(complaint(reading))
        verdict = self.judge(step, reading)
        return reading.metrics() | {
            "complaint": self.complaints[-1],
            "verdict": verdict.health.value,
            "verdict_reason": verdict.reason,
        }

    def judge(self, step: int, last: Reading) -> Verdict:
        """The verdict at ``step``, whose reading is ``last``.

        A run collapses when its last readings are all bad, and either it had good ones before (early or not), or it is
        past the first verdict and should have had some: with LayerScale 1e-5 every run starts with the same class token
        for all images.
        """
        recent = self.complaints[-self.patience :]
        enough = len(recent) == self.patience
        early = step < self.first_verdict
        if enough and all(recent) and not (early and all(self.complaints)):
            return Verdict(Health.COLLAPSING, f"{recent[-1]}, {self.patience} readings in a row")
        if early or not enough:
            now = recent[-1] or "nothing is wrong so far"
            needs = f"a verdict needs {self.first_verdict} steps and {self.patience} readings; this is step {step}"
            return Verdict(Health.EARLY, f"{now}; {needs}")
        if recent[-1]:
            return Verdict(Health.EARLY, f"{recent[-1]}, but not in each of the last {self.patience} readings")
        return Verdict(Health.HEALTHY, _praise(last))


def complaint(reading: Reading) -> str:
    """What is wrong with a reading, in words; empty when nothing is."""
    if not math.isfinite(reading.feature_similarity):
        return "the teacher's features are not finite"
    if reading.feature_similarity > 0.995:
        return f"the teacher gives all images the same feature (mean cosine {reading.feature_similarity:.4f})"
    if reading.effective_rank < 2.0:
        return f"the teacher's features vary along one direction at most (effective rank {reading.effective_rank:.2f})"
    if max(reading.assignment_information) < LEAST_INFORMATION:
        return (
            "the assignments say nothing about the images "
            f"({max(reading.assignment_information):.1%} of the possible information at the best level)"
        )
    return ""


def _praise(reading: Reading) -> str:
    """What is good about a reading without complaint, and which levels are not there yet."""
    silent = [str(level) for level, info in enumerate(reading.assignment_information) if info < LEAST_INFORMATION]
    return (
        f"assignments tell images apart ({max(reading.assignment_information):.0%} of the possible information at the "
        f"best level{', next to nothing yet at level ' + ', '.join(silent) if silent else ''}), "
        f"effective rank {reading.effective_rank:.1f}, mean similarity {reading.feature_similarity:.2f}"
    )


def _entropy(rows: Tensor) -> Tensor:
    """Entropy in nats of each row, (N, K) -> (N,)."""
    return torch.special.entr(rows.float()).sum(dim=1)
