"""What can go wrong with RASA itself."""

from franca.eval.errors import EvalError


class RasaError(EvalError):
    """Position can't be removed as asked; the message names the value, where it came from and what to do."""
