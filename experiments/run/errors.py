"""Faults of use that the commands report in one sentence."""

from losses.errors import UsageError


class RunError(UsageError):
    """A run folder, checkpoint or suite is not what was asked for; the message says what to do."""
