"""Work of the first process that takes longer than the others may wait for a collective."""

from collections.abc import Callable
from threading import Event, Thread

from franca.distributed import is_main, sum_over_ranks, world_size
from franca.eval.errors import EvalError

SECONDS = 60.0  # between two signs of life
BUSY, DONE, FAILED = 1, 0, 2


def while_others_wait(work: Callable[[], None]) -> None:
    """Run ``work`` on rank 0; all ranks go on when it has ended, however long it took. It may call no collective.

    Raises what ``work`` raises, and EvalError on the other ranks.
    """
    if world_size() == 1:
        work()
    elif is_main():
        _work_with_signs(work)
    else:
        while (state := sum_over_ranks([0])[0]) == BUSY:
            pass
        if state == FAILED:
            raise EvalError("the first process has failed: its lines say why")


def _work_with_signs(work: Callable[[], None]) -> None:
    """A thread tells the other ranks every now and then that this one is at work."""
    ended, state = Event(), [FAILED]

    def tell() -> None:
        while not ended.wait(SECONDS):
            sum_over_ranks([BUSY])
        sum_over_ranks(state)

    teller = Thread(target=tell)
    teller.start()
    try:
        work()
        state[0] = DONE
    finally:
        ended.set()
        teller.join()
