"""Which operations torch computes."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Computed(TorchDispatchMode):
    """Names of all operations that are computed while entered, not those whose kept result is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        self.names.append(str(function))
        return function(*arguments, **(options or {}))
