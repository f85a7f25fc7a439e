"""Faults of use of compressed communication."""


class CommunicationError(RuntimeError):
    """Compressed communication cannot work as asked; the message says why and what to do."""
