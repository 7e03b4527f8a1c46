"""What the machine says of itself: this boot, room on a file system, what kind it is.

Asked while something is opened, from any thread; opens only files of /proc.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from siltstone.errors import ConfigError

StrPath = str | os.PathLike[str]


def free_bytes(directory: StrPath) -> int:
    """Room that this user has on the file system of `directory`; 0 when it cannot be asked."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


@functools.cache  # no process outlives its boot; each checkpoint notes it
def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine; zeros where it does not say."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


NETWORK_FILE_SYSTEMS = frozenset(
    [
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gfs2"),
        *("glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"),
        "virtiofs",
    ]
)


def network_file_system(path: StrPath) -> str:
    """The type of the network file system that holds `path`; "" when it is a local one."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for mount in mounts:
        head, _, tail = mount.partition(" - ")
        if head.split()[2] == wanted and tail.split()[0] in NETWORK_FILE_SYSTEMS:
            return tail.split()[0]
    return ""


def refuse_network_file_system(path: StrPath) -> None:
    """Shared memory and locks mean nothing between machines."""
    kind = network_file_system(path)
    if kind:
        raise ConfigError(
            f"{os.fspath(path)} is on {kind}: a cache cannot be shared on a network file system"
        )
