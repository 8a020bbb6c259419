"""Run pieces of Python under limits. Started by `code.passes` as a program, never imported.

Reads one JSON object from standard input, and prints its secret at the end if nothing failed.
"""

import contextlib
import json
import os
import resource
import sys
import types
from typing import Any

FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.utime",
    "os.chdir", "os.fchdir", "os.setxattr", "os.removexattr", "os.lockf", "os.startfile", "pty.spawn",
    "ctypes.", "shutil.", "tempfile.", "urllib.", "http.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "telnetlib.",
    "nntplib.", "webbrowser.", "mmap.", "fcntl.", "syslog.", "resource.", "sqlite3.", "signal.pthread_kill",
    "sys.addaudithook", "gc.get_objects", "gc.get_referrers",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(seconds: int, size: int) -> None:
    """Set what the system enforces."""
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, size),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (getattr(resource, "RLIMIT_NPROC", None), 0),
    ):
        if what is None:
            continue
        with contextlib.suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(what, (most, most))


def leave_the_network() -> None:
    """Go to a network of our own where Linux lets a user do so; the audit hook forbids sockets in any case."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET
    except (ImportError, OSError, AttributeError):
        pass


def forbid() -> None:
    """From here on refuse what code under test has no business with; a hook cannot be taken away again."""
    roots = tuple({os.path.realpath(path) + os.sep for path in (*sys.path, sys.base_prefix)})
    real, decode = os.path.realpath, os.fsdecode  # so that code under test cannot put others in their place

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITING:
                raise PermissionError("files are not written here")
            if isinstance(path, (str, bytes)) and not real(decode(path)).startswith(roots):
                raise PermissionError("no file but Python's own is read here")
        elif event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not permitted here")

    sys.addaudithook(hook)


def main() -> None:
    """Run the pieces in one namespace."""
    given = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    leave_the_network()
    limit(given["seconds"], given["bytes"])
    pieces = [compile(part, f"<part {i}>", "exec") for i, part in enumerate(given["parts"])]
    # A module of another name than the program's: what stands under `if __name__ == "__main__"` is no definition.
    module = sys.modules["answer"] = types.ModuleType("answer")
    forbid()
    for piece in pieces:
        exec(piece, module.__dict__)
    os.write(out, given["secret"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()
