"""Landlock: what this process may write and whom it may call, enforced by the Linux kernel.

A second line of defence: nothing of ours writes outside the folders that the user named, but a native library
that a hostile model has taken over might. See landlock(7); no privilege is needed. It does not restrict
reading, because Python, ONNX Runtime and their drivers read from all over the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

# landlock(7), linux/landlock.h; the numbers of the calls are the same on every architecture
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1
_WRITE_FILE = 1 << 1
_CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))  # remove and make files, folders, links, devices
_REFER, _TRUNCATE = 1 << 13, 1 << 14  # versions 2 and 3
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1  # version 4
_NEEDED_VERSION = 3  # renaming between folders and truncating can be allowed and forbidden
_NETWORK_VERSION = 4
_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)

#: Where programs write that keep nothing: terminals, shared memory, their own settings.
_ALWAYS = (Path("/dev"), Path("/proc/self"))


class _Ruleset(ctypes.Structure):
    _fields_ = [("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def restrict(writable: Iterable[Path], *, network: bool) -> bool:
    """Give up writing outside some folders, and TCP, in this process and all that it starts from now on.

    Args:
        writable: folders; those that are not there are passed over.
        network: keep TCP.

    Returns:
        Whether the system does this; if not, nothing has changed.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    version = library.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < _NEEDED_VERSION:
        return False
    access = _WRITE_FILE | _CHANGE_FOLDERS | _REFER | _TRUNCATE
    closed = 0 if network or version < _NETWORK_VERSION else _BIND_TCP | _CONNECT_TCP
    asked = _Ruleset(access, closed)
    size = ctypes.sizeof(asked) if version >= _NETWORK_VERSION else _Ruleset.access_net.offset
    rules = library.syscall(_CREATE_RULESET, ctypes.byref(asked), size, 0)
    if rules < 0:
        return False
    try:
        for folder in (*writable, *_ALWAYS):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow(library, rules, folder, access)
        library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(library.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(library: ctypes.CDLL, rules: int, folder: Path, access: int) -> None:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(access, descriptor)
        library.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
