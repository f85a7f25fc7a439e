"""Faults of use, and of disks, that the commands report in one sentence."""

import errno
import os
from pathlib import Path

from losses.errors import UsageError

_OF_THE_MACHINE = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.EMFILE, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EPIPE, errno.EROFS, errno.ESTALE,
}  # fmt: skip
"""What an operating system refuses however right a program is."""


class RunError(UsageError):
    """A run folder, checkpoint or suite is not what was asked for; the message says what to do."""


def told(fault: OSError) -> str | None:
    """What a disk or a folder refuses, in one sentence; None if the fault may be a mistake in the program."""
    file = os.fsdecode(fault.filename) if fault.filename else ""
    gone = bool(file) and fault.errno == errno.ENOENT and not Path(file).parent.is_dir()
    if fault.errno not in _OF_THE_MACHINE and not gone:
        return None
    why = f"{fault.strerror}{', its folder is not there' if gone else ''}."
    return " ".join([f"{file or 'The output, or a file,'} cannot be used: {why}", *getattr(fault, "__notes__", [])])
