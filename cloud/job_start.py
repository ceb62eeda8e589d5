"""The first thing that a job's process runs: it ties itself to the service, shuts itself in, and becomes the program.

Run as a file by a bare interpreter (`python -I -S job_start.py WALLS PROGRAM…`, `WALLS` is JSON), so it may import
nothing but the standard library. It is a program and not a `preexec_fn`, which is unsafe where threads run.

- The kernel kills the job when the thread that started it goes (`PR_SET_PDEATHSIG`), also after a `kill -9`.
- Landlock (Linux 5.13 and later) lets it write into its folder only, and read Python, what is installed for it, and the
  system's libraries: no other file, so no settings, no keys, no database, no one's home. Nor can it look into or signal
  (6.12) processes outside.
- seccomp (`forbid`) leaves it no socket, so neither Kafka nor the database nor a Docker daemon can be reached, and no
  way to leave its process group, in which it is ended as a whole.
- Where the service is root, the job keeps nothing of that but the right to read files.

What a kernel does not have is said in the job's log.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522
MAY_READ_ALL = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: files of other users, within what Landlock leaves
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH = 1
NETWORK = 0b11  # binding and connecting TCP, from version 4 on
SCOPES = 0b11  # abstract sockets and signals, from version 6 on

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
ALL_SINCE = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""All rights on files by Landlock's version; what came later (ioctl on devices) is left alone."""

SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/proc", "/sys"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    *("/etc/os-release", "/etc/ssl/openssl.cnf", "/etc/fonts"),
)
"""What any program reads; secrets in `/proc` are behind the kernel's check of who may trace whom."""

FORBIDDEN = {
    "x86_64": {
        "socket": 41,
        "ptrace": 101,
        "setpgid": 109,
        "setsid": 112,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "unshare": 97,
        "ptrace": 117,
        "setpgid": 154,
        "setsid": 157,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "bpf": 280,
        "userfaultfd": 282,
    },
}
"""System calls that are refused, by machine; the next ones have the same number everywhere."""
FORBIDDEN_EVERYWHERE = {"io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438}
PRCTL, SOCKETPAIR, CLONE = {"aarch64": (167, 199, 220)}.get(platform.machine(), (157, 53, 56))
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
"""x86-64's second set of system calls begins here."""
CLONE_NEWUSER = 0x10000000
NO_SUCH_CALL, NOT_PERMITTED = 38, 1

libc = ctypes.CDLL(None, use_errno=True)


def confine(folder: Path, hidden: Path, readable: list[Path], listed: list[Path]) -> bool:
    """Shut this process's files in for good; False where the kernel has no Landlock.

    It may write in `folder`, read `SYSTEM` and `readable`, and list what is in `listed`; nothing under `hidden`.
    """
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    every = ALL_SINCE[min(version, 3)]
    network = NETWORK if version >= 4 else 0
    scopes = SCOPES if version >= 6 else 0
    attributes = struct.pack("=QQQ", every, network, scopes)[: 24 if scopes else 16 if network else 8]
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    for top in (*map(Path, SYSTEM), *readable):
        for path in around(top.resolve(), hidden):
            allow(rules, path, READ & every)
    for top in listed:
        allow(rules, top, READ_DIR)
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


def go_first() -> None:
    """Be what the kernel ends first where the machine has no memory left, before the service is."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        print("the machine's memory may end before the job does", file=sys.stderr, flush=True)


def around(top: Path, hidden: Path) -> list[Path]:
    """Everything under `top` but `hidden`, in as few paths as will do; without links, which could lead there."""
    if top.is_symlink():
        return []
    if not hidden.is_relative_to(top):
        return [] if top.is_relative_to(hidden) else [top]
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


def forbid() -> bool:
    """Give up system calls for good (a filter in the kernel's classic BPF, see seccomp(2)); False where it has none.

    Refused are those of `FORBIDDEN`, calls of another machine's kind, sockets but pairs of streams, new user
    namespaces, and taking back what ties the process to the service.
    """
    machine = platform.machine()
    if machine not in FORBIDDEN or sys.byteorder != "little":
        return False
    load, equal, at_least, bits, back = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, absent, let = 0x00050000 | NOT_PERMITTED, 0x00050000 | NO_SUCH_CALL, 0x7FFF0000
    number, arch, first, second = 0, 4, 16, 24
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, arch),
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (back, 0, 0, refuse),
    ]
    code += [(load, 0, 0, number), (at_least, 0, 1, X32), (back, 0, 0, refuse)]
    for name, call in (FORBIDDEN[machine] | FORBIDDEN_EVERYWHERE).items():
        code += [(equal, 0, 1, call), (back, 0, 0, absent if name == "clone3" else refuse)]
    code += [(equal, 0, 4, CLONE), (load, 0, 0, first), (bits, 0, 1, CLONE_NEWUSER), (back, 0, 0, refuse)]
    code += [(back, 0, 0, let)]
    code += [(equal, 0, 5, PRCTL), (load, 0, 0, first), (equal, 1, 0, PR_SET_PDEATHSIG)]
    code += [(equal, 0, 1, PR_SET_CHILD_SUBREAPER), (back, 0, 0, refuse), (back, 0, 0, let)]
    code += [(equal, 0, 5, SOCKETPAIR), (load, 0, 0, second), (0x54, 0, 0, 0xF), (equal, 1, 0, 1)]
    code += [(back, 0, 0, refuse), (back, 0, 0, let)]
    code += [(back, 0, 0, let)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", op, yes, no, k) for op, yes, no, k in code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(packed)))
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def main(walls: dict[str, Any], program: list[str]) -> None:
    """Become `program`, confined."""
    output = walls["output"]
    readable, listed = (list(map(Path, walls[name])) for name in ("readable", "listed"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    go_first()
    drop_privileges()
    if not confine(Path(walls["folder"]), Path(walls["hidden"]), readable, listed):
        print("this kernel has no Landlock: the job may read files of the service", file=sys.stderr, flush=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what its children leave behind stays its own, to be counted
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != walls["parent"]:
        sys.exit("the service is gone")
    if not forbid():
        print("this kernel has no seccomp: the job may open sockets", file=sys.stderr, flush=True)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
