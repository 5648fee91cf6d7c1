"""Franca: self-supervised vision models with nested (Matryoshka) clustering heads.

`import franca` is light: torch is imported by the modules that need it, `franca.load_model` on first use.
"""

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from franca.hub import load_model

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"

_OLDEST_TORCH = (2, 11)


def _refuse_old_torch() -> None:
    """Raise ImportError when the installed torch is older than what the code is written for.

    Reads the installed version without importing torch. Whoever has no torch hears so from the first import of it.
    """
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"franca needs torch >= {oldest}, this environment has {version}. "
            f"Upgrade it: python -m pip install 'torch>={oldest}' torchvision"
        )


_refuse_old_torch()


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from franca.hub import load_model

        return load_model
    raise AttributeError(f"module 'franca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
