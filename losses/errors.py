"""Faults of use: what the commands report in one sentence, without a traceback."""


class UsageError(RuntimeError):
    """What was asked for cannot be done as it was asked; the message says why, and what to do instead."""


class NetworkError(UsageError):
    """A network cannot be built, or not be cut, as it was asked; the message says why and what to do."""
