"""The first thing that a job's process runs: it ties itself to the service, shuts itself in, and becomes the program.

Run as a file by a bare interpreter (`python -I -S job_start.py PARENT FOLDER HIDDEN OUTPUT_BYTES PROGRAM…`), so it may
import nothing but the standard library. It is a program and not a `preexec_fn`, which is unsafe where threads run.

- The kernel kills the job when the thread that started it goes (`PR_SET_PDEATHSIG`), also after a `kill -9`.
- Landlock (Linux 5.13 and later) lets it write into FOLDER only and read nothing under HIDDEN, where the service keeps
  its key and its database; nor can it look into or signal processes outside. Without Landlock it says so in its log.
- Where the service is root, the job keeps nothing of that but the right to read files.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522
MAY_READ_ALL = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: files of other users, within what Landlock leaves
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH = 1
SCOPES = 0b11  # abstract sockets and signals, from version 6 on

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
ALL_SINCE = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""All rights on files by Landlock's version; what came later (ioctl on devices) is left alone."""

libc = ctypes.CDLL(None, use_errno=True)


def confine(folder: Path, hidden: Path) -> bool:
    """Shut this process in for good; False where the kernel has no Landlock."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    every = ALL_SINCE[min(version, 3)]
    scopes = SCOPES if version >= 6 else 0
    attributes = struct.pack("=QQQ", every, 0, scopes)[: 24 if scopes else 8]
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    for path in around(Path("/"), hidden):
        allow(rules, path, READ & every)
    allow(rules, folder, every)
    for device in ("/dev/null", "/dev/tty"):
        allow(rules, Path(device), (READ_FILE | WRITE_FILE) & every)
    return bool(libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0)


def drop_privileges() -> None:
    """Leave behind what root could do beyond files, for good; an ordinary user has nothing of it to begin with."""
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0), 8)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) == 0:
        effective, permitted, *_ = struct.unpack("=6I", held.raw)
        kept = struct.pack("=6I", effective & MAY_READ_ALL, permitted & MAY_READ_ALL, 0, 0, 0, 0)
        libc.capset(header, ctypes.create_string_buffer(kept, 24))


def around(top: Path, hidden: Path) -> list[Path]:
    """Everything under `top` but `hidden`, in as few paths as will do; without links, which could lead there."""
    if top.is_symlink():
        return []
    if not hidden.is_relative_to(top):
        return [top]
    if hidden == top:
        return []
    return [path for entry in top.iterdir() for path in around(entry, hidden)]


def allow(rules: int, path: Path, rights: int) -> None:
    """Add `rights` on `path` and what lies beneath; a path that cannot be opened stays forbidden."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not path.is_dir():
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, descriptor)
    libc.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    os.close(descriptor)


def main(parent: int, folder: Path, hidden: Path, output_bytes: int, program: list[str]) -> None:
    """Become `program`, confined."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    drop_privileges()
    if not confine(folder, hidden):
        print("this kernel has no Landlock: the job runs unconfined", file=sys.stderr, flush=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the service is gone")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
