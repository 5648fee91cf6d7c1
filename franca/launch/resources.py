"""What a job asks of a cluster, or of this machine."""

import math
import re
from dataclasses import dataclass, field


class LaunchError(Exception):
    """A run that can't be launched; the message says what to do."""


@dataclass(frozen=True)
class JobConfig:
    """Resources of a run, by SLURM's names. Empty and 0 leave the choice to SLURM, unless said otherwise."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 0  # processes; 0: one for each GPU, and one where there are none
    cpus_per_task: int = 0
    time: str = ""  # limit of one stretch, in SLURM's forms; the run goes on in the next one
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    signal_before: int = 300  # seconds before the limit at which the run is told to save
    requeues: int = 100  # stretches that may follow the first
    setup: tuple[str, ...] = ()  # lines of shell that the job runs first, such as "module load cuda"
    sbatch: dict[str, str] = field(default_factory=dict)  # any other option of sbatch, by its long name

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 0, "cpus_per_task": 0, "requeues": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise LaunchError(f"{_flag(name)}={getattr(self, name)} must be at least {value}")
        if self.signal_before < 1:
            raise LaunchError(f"--signal-before={self.signal_before} must be at least 1 second")
        if self.time and self.minutes * 60 <= self.signal_before:
            raise LaunchError(
                f"--time {self.time} is no longer than --signal-before={self.signal_before} seconds, which the run "
                "has to save its state: give it more time"
            )

    @property
    def minutes(self) -> int:
        """The time limit."""
        return parse_minutes(self.time)

    @property
    def processes_per_node(self) -> int:
        """One for each GPU unless tasks_per_node says otherwise."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def processes(self) -> int:
        """All processes of the run."""
        return self.nodes * self.processes_per_node


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_minutes(text: str) -> int:
    """Minutes, rounded up, of a time as SLURM writes it.

    The forms are M, M:S, H:M:S, D-H, D-H:M and D-H:M:S. Raises LaunchError for any other.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise LaunchError(f"--time {text!r} is no time; write hours:minutes:seconds (20:00:00) or days-hours (2-12)")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    given = [part for part in parts if part is not None]
    if days is None and len(given) < 3:  # without days, one or two numbers begin with minutes
        given = [0, *given]
    hours, minutes, seconds = given + [0] * (3 - len(given))
    total = math.ceil((((days or 0) * 24 + hours) * 60 + minutes) + seconds / 60)
    if total == 0:
        raise LaunchError(f"--time {text} leaves no time to run")
    return total
