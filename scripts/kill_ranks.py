"""Does a run of several processes survive kill -9? Kills random ranks at random moments, and compares with a whole run.

    python scripts/kill_ranks.py --kills 30
    python scripts/kill_ranks.py --kills 5 --ranks 4 parallel.strategy=shard

A small run on the sample photographs is trained twice, once undisturbed. The other time one rank after another dies, in
the start, in a step or in a save; the rest ends, and the same command goes on. In the end both must have
logged the same numbers, and no kill may have cost more than the steps since the last save.
"""

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from franca.metrics import read_metrics
from franca.train.__main__ import main as train
from franca.train.checkpoint import CheckpointFolder
from franca.train.config import TrainConfig, load_config
from franca.train.vitals import Vitals

SMALL = (
    *("model.arch=vit_tiny", "model.depth=1", "model.embed_dim=32", "model.num_heads=2", "precision=fp32"),
    *("heads.nesting=[0.5,1.0]", "heads.hidden_dim=16", "heads.dino.prototypes=16", "heads.dino.bottleneck_dim=8"),
    *("heads.ibot.prototypes=16", "heads.ibot.bottleneck_dim=8", "data.batch_size=4", "data.workers=0"),
    *("data.crops.global_size=56", "data.crops.local_size=28", "data.crops.local_count=2", "optimizer.warmup_steps=1"),
    *("log.every=1", "monitor.every=0", "checkpoint.every=4", "device=cpu"),
)
GRACE = 10  # seconds after a death until the launcher, torchrun or srun, ends the other ranks


class Run:
    """One training command on several processes of this machine, started as often as needed."""

    def __init__(self, name: str, folder: Path, ranks: int, arguments: list[str]) -> None:
        self.output, self.log = folder / name, folder / f"{name}.log"
        self.ranks = ranks
        self.arguments = [*arguments, f"output={self.output}"]

    def start(self) -> list[BaseProcess]:
        """All ranks, which go on from the newest saved state."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["franca.train.command"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes: list[BaseProcess] = [
            context.Process(target=be_rank, args=(rank, self.ranks, port, self.arguments, str(self.log)))
            for rank in range(self.ranks)
        ]
        for process in processes:
            process.start()
        return processes

    def step(self) -> int:
        """The newest step logged."""
        return max((line["step"] for line in read_metrics(self.output / "metrics.jsonl")), default=0)

    def saved(self, config: TrainConfig) -> int:
        """Step of the newest whole state; -1 for none."""
        newest = CheckpointFolder(self.output / "checkpoints", config.checkpoint).latest()
        return int(newest.name.removeprefix("step_")) if newest else -1


def be_rank(rank: int, ranks: int, port: int, arguments: list[str], log: str) -> None:
    """Body of a process: what torchrun would start."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    sys.exit(train(arguments))


def ended(processes: list[BaseProcess], grace: float | None = None) -> list[int | None]:
    """Exit codes, once all have ended; after ``grace`` seconds they are killed, as a launcher does it."""
    deadline = None if grace is None else time.monotonic() + grace
    for process in processes:
        process.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def kill_once(run: Run, chance: random.Random, config: TrainConfig) -> tuple[str, int]:
    """Start, kill a random rank at a random moment. What went wrong ("" for nothing), and the steps that it cost."""
    processes = run.start()
    alive_until = run.step() + chance.randint(0, 2 * config.checkpoint.every)
    while run.step() < alive_until and all(process.is_alive() for process in processes):
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.3))
    victim = chance.randrange(run.ranks)
    before, pid = run.saved(config), processes[victim].pid
    if pid is None or not processes[victim].is_alive():
        return f"the run ended by itself ({ended(processes)}) before it could be killed: give it more steps", 0
    os.kill(pid, signal.SIGKILL)
    codes = ended(processes, GRACE)
    if 0 in codes:
        return f"rank {victim} was killed at step {run.step()}; exit codes of the ranks: {codes}", 0
    after = run.saved(config)
    if after < before:
        return f"the state of step {before} was lost, the newest is that of step {after}", 0
    return "", run.step() - max(after, 0)


def survive(folder: Path, kills: int, ranks: int, arguments: list[str], seed: int) -> str:
    """Both runs and their comparison; what went wrong, or ""."""
    chance = random.Random(seed)
    whole, disturbed = (Run(name, folder, ranks, arguments) for name in ("whole", "disturbed"))
    config = load_config(
        None, [argument for argument in arguments if "=" in argument and not argument.startswith("--")]
    )
    codes = ended(whole.start())
    if any(codes):
        return f"the undisturbed run failed with {codes}; see {whole.log}"
    for number in range(kills):
        trouble, cost = kill_once(disturbed, chance, config)
        if trouble:
            return f"kill {number + 1}: {trouble}; see {disturbed.log}"
        newest = disturbed.saved(config)
        print(f"kill {number + 1} of {kills}: cost {cost} steps, the newest state is that of step {newest}", flush=True)
        # A save that runs in the background is not finished yet, so up to two intervals may be done again.
        if cost > 2 * config.checkpoint.every:
            return f"kill {number + 1} cost {cost} steps, with a save every {config.checkpoint.every}"
    codes = ended(disturbed.start())
    if any(codes):
        return f"the run did not end after the kills: {codes}; see {disturbed.log}"
    return compare(whole, disturbed)


def compare(whole: Run, disturbed: Run) -> str:
    """Where the logged numbers differ, or "". The clock's own don't count."""
    expected, found = (read_metrics(run.output / "metrics.jsonl") for run in (whole, disturbed))
    if [line["step"] for line in found] != [line["step"] for line in expected]:
        return "lines are lost or doubled"
    for line, other in zip(found, expected, strict=True):
        for name in line.keys() - set(Vitals.names()):
            if line[name] != other[name]:
                return f"step {line['step']}: {name} is {line[name]} after kills, {other[name]} without"
    return ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run that is killed")
    return parser.parse_intermixed_args()


def main() -> int:
    options = parse_arguments()
    arguments = [*SMALL, "data.source=photographs", f"steps={8 * options.kills + 8}", *options.overrides]
    with tempfile.TemporaryDirectory() as folder:
        trouble = survive(Path(folder), options.kills, options.ranks, arguments, options.seed)
        if trouble:
            print(f"FAILED: {trouble}", *(log.read_text()[-3000:] for log in Path(folder).glob("*.log")), sep="\n")
    print(
        "FAILED" if trouble else f"{options.kills} kills on {options.ranks} ranks: the numbers of the undisturbed run"
    )
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
