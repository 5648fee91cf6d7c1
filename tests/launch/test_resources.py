"""Resources are read as SLURM reads them, and refused where they make no job."""

import pytest

from franca.launch.resources import JobConfig, LaunchError, parse_minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("20:00:00", 1200),
        ("0:00:01", 1),
        ("2-12", 60 * 60),
        ("1-2:30", 24 * 60 + 150),
        ("1-2:30:59", 24 * 60 + 151),
    ],
)
def test_times_mean_what_they_mean_to_sbatch(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1.5", "1-", "0", "0:00:00", "20h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(LaunchError, match="--time"):
        parse_minutes(text)


def test_one_process_for_each_gpu_unless_said_otherwise() -> None:
    assert JobConfig().processes == 1
    assert JobConfig(nodes=4, gpus_per_node=8).processes == 32
    assert JobConfig(nodes=2, tasks_per_node=3).processes == 6
    assert JobConfig(nodes=2, gpus_per_node=8, tasks_per_node=1).processes == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 0}, "--nodes=0 must be at least 1"),
        ({"gpus_per_node": -1}, "--gpus-per-node=-1 must be at least 0"),
        ({"requeues": -1}, "--requeues=-1"),
        ({"time": "1", "signal_before": 60}, "--time 1 is no longer than --signal-before=60 seconds"),
    ],
)
def test_what_makes_no_job_is_refused(given: dict[str, int | str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        JobConfig(**given)  # type: ignore[arg-type]
