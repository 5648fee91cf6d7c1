"""Log and watchdog of one process, from before it meets the others until it has left them."""

import logging
import math
from contextlib import ExitStack
from pathlib import Path

from franca.config import ConfigError
from franca.distributed import Place
from franca.train.build import FolderInUse, is_same_run
from franca.train.config import TrainConfig
from franca.train.rank_log import RankLog
from franca.train.watchdog import HangWatchdog

logger = logging.getLogger(__name__)


class Watch:
    """A :class:`RankLog` and a :class:`HangWatchdog` that write to stderr until the run has its folder.

    own: where the launcher put this process; None: on its own.
    """

    def __init__(self, config: TrainConfig, own: Place | None = None) -> None:
        self.config = config
        self.number, self.count = (own.rank, own.world_size) if own else (0, 1)
        self.log = RankLog(self.number, self.count, self._home)
        group = 60 * config.parallel.timeout_minutes if self.count > 1 else math.inf
        self.watchdog = HangWatchdog(self.log.file, 60 * config.log.hang_minutes, group, self._say)

    def __enter__(self) -> "Watch":
        with ExitStack() as stack:
            stack.enter_context(self.log)
            stack.enter_context(self.watchdog)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def _say(self, words: str) -> None:
        if self.number == 0:
            logger.warning(words)

    def _home(self, error: BaseException) -> Path | None:
        """The run's folder, if it is there already and the error is no refusal to write into it."""
        if isinstance(error, FolderInUse):
            return None
        try:
            return Path(self.config.output) if is_same_run(self.config.for_ranks(self.count)) else None
        except (ConfigError, ValueError, OSError):
            return None
