"""Faults of use that the commands report in one sentence."""


class RunError(RuntimeError):
    """A run folder, checkpoint or suite is not what was asked for; the message says what to do."""
