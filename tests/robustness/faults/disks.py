"""File systems of a few pages, which can be made larger, and made to refuse writing."""

import errno
import shutil
import subprocess
from contextlib import contextmanager

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def can_mount(folder):
    with disk(folder / "tried", 64) as made:
        return made is not None


@contextmanager
def disk(folder, kibibytes):
    """Mount a file system in memory; yields None where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if not mount or _mount("-t", "tmpfs", "-o", f"size={kibibytes}k,mode=777", "tmpfs", folder):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def grow(folder, kibibytes=65536):
    assert _mount("-o", f"remount,size={kibibytes}k", folder) == 0


def lock(folder):
    assert _mount("-o", "remount,ro", folder) == 0


def _mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def limited(kibibytes, work):
    """Call in a process whose files cannot grow beyond so much: a full disk's poor relation."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kibibytes, 1024 * kibibytes))
    return work()
