"""What keeps a run from being published."""


class PublishError(ValueError):
    """A run, or a place for its release, that can't be used; the message names it and says what to do."""
