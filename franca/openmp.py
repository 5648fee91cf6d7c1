"""How threads of OpenMP, which torch computes with on a CPU, wait for one another."""

import os
import sys


def sleep_while_waiting() -> None:
    """Let threads sleep where they would spin; for a command before it imports torch, afterwards it does nothing.

    A thread that spins keeps a core from the one it waits for as soon as there is less than a core for each: other
    programs, a container's share, a virtual machine's. What the user set stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
