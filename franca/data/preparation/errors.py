"""What stops a step of the preparation."""

from franca.data.errors import DataError


class PreparationError(DataError):
    """A step can't be done; the message names the file or option and says what to do."""
