"""The error that model, loss and optimiser pass to each other."""


class NonFiniteError(ValueError):
    """A response is NaN or infinite; the message names its site."""
