"""What evaluation refuses, with words for the person who asked for it."""


class EvalError(ValueError):
    """A model, a data set or an option that can't be used; the message names it and says what to do."""
