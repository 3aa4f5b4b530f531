"""Helper processes of this machine: where the sockets lie over which they are reached.

``multiprocessing`` puts them below the folder for temporary files, which a cluster's queue may give each job
anew, by a long name. The path of a Unix socket has room for a hundred characters or so.
"""

from __future__ import annotations

import multiprocessing.util
import os
import sys
import tempfile
from pathlib import Path

from simulator.parts import BadInput

LONGEST = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have (``sun_path``, less the zero at its end)."""

SHORT = ("/tmp", "/var/tmp")
"""Folders for sockets where that for temporary files has too long a name."""

_OWN = len("/pymp-abcdefgh/listener-abcdefgh")
"""What ``multiprocessing`` adds to the folder."""


def shorten_sockets() -> None:
    """Let sockets of helper processes lie where their paths are short enough; other files stay put.

    To be called before the first helper process is started.

    Raises
    ------
    BadInput
        There is no such folder.
    """
    given = tempfile.gettempdir()
    if _fits(given):
        return
    for folder in SHORT:
        tempfile.tempdir = folder
        try:
            made = multiprocessing.util.get_temp_dir()  # made by the first to ask, and kept
        except OSError:
            continue
        finally:
            tempfile.tempdir = given
        if _fits(str(Path(made).parent)):
            return
    raise BadInput(
        "TMPDIR",
        f"'{given}' is too long for a socket, whose path may have {LONGEST} bytes, and nothing can be "
        f"written to {' or '.join(SHORT)}; name a folder of at most {LONGEST - _OWN} bytes",
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(folder)) + _OWN <= LONGEST
