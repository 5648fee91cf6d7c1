"""What can go wrong with RASA itself."""


class RasaError(ValueError):
    """Position can't be removed as asked; the message names the value, where it came from and what to do."""
