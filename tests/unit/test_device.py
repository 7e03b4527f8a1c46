"""Opening, geometry, locks and I/O of devices: every refusal says what is wrong."""

import errno
import os
import subprocess
import sys

import pytest
from fakes import Fault, FaultDevice, ManualClock, SeededRandom

from siltstone.errors import (
    Busy,
    Closed,
    ConfigError,
    Corruption,
    DeviceFailed,
    EnvironmentFailure,
    Locked,
    WrongFormat,
)
from siltstone.log import device as devices
from siltstone.log import machine
from siltstone.log.device import FIRST_DATA_OFFSET, FileDevice, LockFile, MemoryDevice
from siltstone.log.slots import deal
from siltstone.log.superblock import FORMAT_VERSION, Superblock

SEGMENT = 8192


def make(path, segments=4, **options):
    options = {"engine": "cache"} | options
    return FileDevice([(path, segments * SEGMENT)], SEGMENT, **options)


def in_other_process(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    return done.stdout.strip() + done.stderr.strip()


OPEN = """
import sys
from siltstone.errors import SiltstoneError
from siltstone.log.device import FileDevice
try:
    FileDevice([(sys.argv[1], None)], 8192, engine="cache", lock=sys.argv[2])
    print("opened")
except SiltstoneError as error:
    print(type(error).__name__, error)
"""


# Geometry


def test_slots_are_dealt_round_robin_until_a_file_is_full(tmp_path):
    sizes = [
        (tmp_path / "a", 4 * SEGMENT),
        (tmp_path / "b", 1 * SEGMENT),
        (tmp_path / "c", 2 * SEGMENT),
    ]
    with FileDevice(sizes, SEGMENT, engine="cache") as device:
        places = [device.handle.place(slot) for slot in range(device.segment_count)]
        files = [number for number, _ in places]
        assert files == [0, 1, 2, 0, 2, 0, 0]
        assert len(set(places)) == 7
        for slot in range(7):
            device.write(slot, 0, bytes([slot + 1]) * SEGMENT)
        for slot in range(7):
            assert device.read(slot, 0, SEGMENT) == bytes([slot + 1]) * SEGMENT
        with pytest.raises(ValueError):
            device.handle.place(7)
    for path, size in sizes:
        assert os.path.getsize(path) == FIRST_DATA_OFFSET + size


@pytest.mark.parametrize("counts", [[3], [2, 2], [4, 1, 2], [1, 5], [7, 7, 3, 1]])
def test_deal_agrees_with_place(tmp_path, counts):
    sizes = [(tmp_path / str(i), n * SEGMENT) for i, n in enumerate(counts)]
    with FileDevice(sizes, SEGMENT, engine="cache") as device:
        seen = [0] * len(counts)
        for slot in range(device.segment_count):
            assert deal(counts, slot) == seen
            number, offset = device.handle.place(slot)
            assert offset == FIRST_DATA_OFFSET + seen[number] * SEGMENT
            seen[number] += 1
        assert seen == counts


def test_growing_device_is_as_long_as_what_was_written(tmp_path):
    paths = [(tmp_path / "a", None), (tmp_path / "b", None)]
    with FileDevice(paths, SEGMENT, engine="store", preallocate=False) as device:
        assert device.slots_present() == 0
        device.write(0, 0, b"x")
        assert device.slots_present() == 1
        device.write(5, 0, b"x")
        assert device.slots_present() == 6
        device.truncate(3)
        assert device.slots_present() == 2  # slot 1 is a hole, slot 2 was never there
        assert device.read(0, 0, 1) == b"x"
        with pytest.raises(DeviceFailed, match="ends before"):
            device.read(5, 0, 1)


# Superblock


def test_slots_with_holes(tmp_path, monkeypatch):
    segment = 1 << 16
    with FileDevice(
        [(tmp_path / "data", None)], segment, engine="log", preallocate=False
    ) as device:
        for slot in range(5):
            device.handle.write(slot, 0, b"x" * segment)
        device.handle.sync()
        assert device.slots_with_holes() == set()
        device.punch(1)
        device.punch(3, 1 << 12)
        if os.lseek(device._files[0].descriptor, 0, os.SEEK_HOLE) < device.size_on_disk:
            assert device.slots_with_holes() == {1, 3}  # else this file system has no holes
        assert device.handle.read(3, 0, 1 << 12) == b"x" * (1 << 12)
        assert device.handle.read(3, 1 << 12, 1 << 12) == bytes(1 << 12)

        def refuse(*_):
            raise OSError(errno.EINVAL, "no such question")

        monkeypatch.setattr(os, "lseek", refuse)
        assert device.slots_with_holes() == set()


def test_superblock_survives_reopening_and_a_torn_newest_copy(tmp_path):
    path = tmp_path / "data"
    with make(path) as device:
        uuid = device.superblock.uuid
        device.write_superblock(stable_position=1000, clean=True)
        device.write_superblock(stable_position=2000, clean=False)
        newest = device.superblock.offset
    with make(path, create=False) as device:
        assert device.superblock.uuid == uuid
        assert device.superblock.stable_position == 2000
        assert not device.superblock.clean
    with open(path, "r+b") as file:
        file.seek(newest + 100)
        file.write(b"torn")
    with make(path, create=False) as device:
        assert device.superblock.stable_position == 1000
        assert device.superblock.clean
    with open(path, "r+b") as file:
        for start in (100, 4196):
            file.seek(start)
            file.write(b"torn")
    with pytest.raises(Corruption, match="checksum") as caught:
        make(path)
    assert caught.value.path == str(path)


def test_foreign_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not yours" * 5000)
    with pytest.raises(WrongFormat, match="not a siltstone file"):
        make(path)
    assert path.read_text() == "not yours" * 5000


def test_other_format_version_is_refused_even_beside_an_older_copy(tmp_path, monkeypatch):
    path = tmp_path / "data"
    make(path).close()
    from siltstone.log import superblock

    monkeypatch.setattr(superblock, "FORMAT_VERSION", FORMAT_VERSION + 1)
    newer = Superblock("cache", bytes(16), SEGMENT, 4, 4, generation=1).pack()
    monkeypatch.undo()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(newer)
    with pytest.raises(WrongFormat, match=f"format version {FORMAT_VERSION + 1}"):
        make(path)


def test_other_engine_and_other_geometry_are_refused(tmp_path):
    path = tmp_path / "data"
    make(path).close()
    with pytest.raises(WrongFormat, match="engine 'cache', not 'store'"):
        make(path, engine="store")
    with pytest.raises(ConfigError, match="segments of 8192 bytes, not 4096"):
        FileDevice([(path, None)], 4096, engine="cache")
    with pytest.raises(ConfigError, match="made for"):
        make(path, segments=5)


def test_files_of_two_devices_or_in_another_order_are_refused(tmp_path):
    def pair(*names):
        return FileDevice([(tmp_path / n, 2 * SEGMENT) for n in names], SEGMENT, engine="cache")

    pair("a", "b").close()
    pair("c", "d").close()
    with pytest.raises(WrongFormat, match="another device"):
        pair("a", "d")
    with pytest.raises(ConfigError, match="order"):
        pair("b", "a")
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(Corruption, match="is empty"):
        pair("a", "b")


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "data"
    make(path).close()
    os.truncate(path, FIRST_DATA_OFFSET + 3 * SEGMENT)
    with pytest.raises(Corruption, match="truncated") as caught:
        make(path)
    assert caught.value.expected == FIRST_DATA_OFFSET + 4 * SEGMENT


def test_unfinished_creation_is_done_again(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(FIRST_DATA_OFFSET + SEGMENT))
    with make(path) as device:
        assert device.segment_count == 4


# What cannot be opened


def test_missing_file_and_missing_directory_are_told_apart(tmp_path):
    with pytest.raises(EnvironmentFailure, match="data does not exist") as caught:
        make(tmp_path / "data", create=False)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(EnvironmentFailure, match=r"directory .*nowhere does not exist"):
        make(tmp_path / "nowhere" / "data")
    with pytest.raises(EnvironmentFailure, match="is a directory"):
        make(tmp_path)


def test_not_writable(tmp_path, monkeypatch):
    def refuse(path, flags, mode=0o600):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentFailure, match="not writable") as caught:
        make(tmp_path / "data")
    assert caught.value.errno == errno.EACCES


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentFailure, match=r"needs \d+ bytes, \d+ are free") as caught:
        make(tmp_path / "data")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "segment", "text"),
    [
        (0, SEGMENT, "too small"),
        (SEGMENT - 1, SEGMENT, "too small"),
        (SEGMENT + 1, SEGMENT, "8192 or 16384 would"),
        (SEGMENT, 100, "at least 4096"),
        (SEGMENT, 5000, "steps of 4096"),
        (4096 << 24, 4096, "more than"),
        (None, SEGMENT, "say how large"),
    ],
)
def test_sizes_that_cannot_work(tmp_path, size, segment, text):
    with pytest.raises(ConfigError, match=text):
        FileDevice([(tmp_path / "data", size)], segment, engine="cache")
    assert list(tmp_path.iterdir()) == []


# Locks


def test_exclusive_device_names_its_holder(tmp_path):
    path = tmp_path / "data"
    with make(path):
        said = in_other_process(OPEN, path, "exclusive")
        assert said.startswith("Locked")
        assert f"pid {os.getpid()}" in said
        with pytest.raises(Locked, match=f"pid {os.getpid()}"):
            make(path)
        # The refused opens above must not have dropped the lock.
        assert in_other_process(OPEN, path, "shared").startswith("Locked")
    assert in_other_process(OPEN, path, "exclusive") == "opened"


def test_shared_devices_exclude_an_exclusive_one(tmp_path):
    path = tmp_path / "data"
    with make(path, lock="shared"):
        assert in_other_process(OPEN, path, "shared") == "opened"
        assert in_other_process(OPEN, path, "exclusive").startswith("Locked")


def test_fork_does_not_inherit_and_child_close_keeps_the_lock(tmp_path):
    path = tmp_path / "data"
    with make(path) as device:
        child = os.fork()
        if child == 0:
            device.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert in_other_process(OPEN, path, "exclusive").startswith("Locked")


LOCK = """
import sys
from siltstone.log.device import open_lock_file
lock = open_lock_file(sys.argv[1])
print(lock.take(int(sys.argv[2])), lock.holder(int(sys.argv[2])))
"""


def test_lock_file_bytes(tmp_path):
    path = tmp_path / "lock"
    lock = devices.open_lock_file(path)
    again = devices.open_lock_file(path)
    assert lock.take(3)
    assert not lock.take(3)
    assert lock.holder(3) == os.getpid()
    again.close()  # must not drop the other's lock
    assert in_other_process(LOCK, path, 3) == f"False {os.getpid()}"
    assert in_other_process(LOCK, path, 4).startswith("True")
    lock.drop(3)
    assert in_other_process(LOCK, path, 3).startswith("True")
    lock.write(4096, b"arena")
    assert lock.read(4096, 5) == b"arena"
    lock.close()
    lock.close()
    with pytest.raises(Closed):
        lock.take(1)


HOLD = """
import sys
from siltstone.log.device import LockFile, open_lock_file
lock = open_lock_file(sys.argv[1])
assert lock.take(LockFile.DOOR)
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_held_by_another_process(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with devices.open_lock_file(path) as lock:
            assert lock.holder(LockFile.DOOR) == holder.pid
            assert lock.holder(5) == 0
            with pytest.raises(Locked, match=f"pid {holder.pid}"):
                lock.take_or_refuse(LockFile.DOOR)
            with pytest.raises(Busy, match=f"pid {holder.pid} for 50 ms"):
                lock.take_within(LockFile.DOOR, 50, clock=ManualClock())
            holder.kill()
            holder.wait()
            lock.take_or_refuse(LockFile.DOOR)


# I/O


def test_reads_and_writes_stay_inside_their_segment(tmp_path):
    with make(tmp_path / "data") as device:
        for slot, offset, size in [(0, SEGMENT, 1), (0, 1, SEGMENT), (4, 0, 1), (0, 1 << 63, 1)]:
            with pytest.raises(DeviceFailed) as caught:
                device.write(slot, offset, bytes(size))
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(DeviceFailed):
                device.read(slot, offset, size)
        assert device.handle.stats()["bytes_written"] == 0


def test_cached_read_without_waiting(tmp_path):
    with make(tmp_path / "data") as device:
        device.write(1, 0, b"warm" * 1024)
        refused = 0
        try:
            assert device.read(1, 0, 4096, 1) == b"warm" * 1024
        except DeviceFailed as error:  # a file system without RWF_NOWAIT
            refused = error.errno
        assert refused in (0, errno.EAGAIN)
        assert device.handle.stats()["reads_refused"] == bool(refused)


def test_direct_reads_are_bounced_and_unaligned_writes_refused(tmp_path):
    try:
        device = make(tmp_path / "data", direct=True)
    except EnvironmentFailure:
        pytest.skip("no O_DIRECT here")
    with device:
        data = bytes(range(256)) * (SEGMENT // 256)
        device.write(2, 0, data)
        device.write(2, 4096, data[:4096])
        assert device.read(2, 0, SEGMENT) == data
        assert device.read(2, 4095, 3) == data[4095:4098]
        assert device.read(2, 17, 5000) == data[17:5017]
        assert device.handle.stats()["bounced_bytes"] > 0
        with pytest.raises(DeviceFailed) as caught:
            device.write(2, 0, b"short")
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(DeviceFailed) as caught:
            device.read(2, 0, 4096, 1)
        assert caught.value.errno == errno.EAGAIN
        device.write_superblock(clean=True)
    with make(tmp_path / "data", direct=True) as device:
        assert device.superblock.clean
        assert device.read(2, 0, SEGMENT) == data


def test_memory_device():
    with MemoryDevice(3, SEGMENT, rng=SeededRandom()) as device:
        device.write(2, 100, b"stone")
        assert device.read(2, 100, 5) == b"stone"
        assert device.read(1, 0, 8) == bytes(8)
        with pytest.raises(DeviceFailed):
            device.read(3, 0, 1)
        device.write_superblock(stable_position=77)
        assert device.reload_superblock().stable_position == 77
        device.sync()


def test_faults_reach_the_caller_and_are_counted():
    inner = MemoryDevice(2, SEGMENT)
    device = FaultDevice(
        inner, Fault("read", 2, errno.EIO), Fault("write", 1, errno.ENOSPC, keep=3)
    )
    with pytest.raises(DeviceFailed, match="No space") as caught:
        device.write(0, 0, b"abcdef")
    assert caught.value.errno == errno.ENOSPC
    assert device.read(0, 0, 6) == b"abc\0\0\0"
    with pytest.raises(DeviceFailed) as caught:
        device.read(0, 0, 6)
    assert caught.value.errno == errno.EIO
    device.faults.append(Fault("read", 3, keep=2))
    with pytest.raises(DeviceFailed, match="ends before"):
        device.read(0, 0, 6)
    stats = device.handle.stats()
    assert (stats["read_errors"], stats["write_errors"]) == (2, 1)


def test_a_write_that_is_durable_is_a_write_and_a_sync():
    device = FaultDevice(MemoryDevice(2, SEGMENT), Fault("sync", 2, errno.EIO))
    device.handle.write(0, 0, b"x", sync=True)
    assert (device.calls["write"], device.calls["sync"]) == (1, 1)
    with pytest.raises(DeviceFailed, match="sync of"):
        device.handle.write(0, 0, b"y", sync=True)
    assert device.handle.read(0, 0, 1) == b"y"


def test_a_failed_sync_stays_failed():
    device = FaultDevice(MemoryDevice(2, SEGMENT), Fault("sync", 2, errno.EIO))
    device.sync()
    for _ in range(3):
        with pytest.raises(DeviceFailed, match="sync of"):
            device.sync()
    assert device.calls["sync"] == 2  # never asked again: a later success would mean nothing
    device.write(0, 0, b"reads go on")
    assert device.read(0, 0, 5) == b"reads"


# Arena files and the live map


def test_arena_file_is_private_and_opened_by_inode(tmp_path):
    descriptor, path = devices.create_arena_file(tmp_path, 1 << 20)
    status = os.fstat(descriptor)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == 1 << 20
    opened = devices.open_arena_file(path, status.st_dev, status.st_ino)
    os.close(opened)
    with pytest.raises(EnvironmentFailure, match="another file"):
        devices.open_arena_file(path, status.st_dev, status.st_ino + 1)
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)
    with pytest.raises(EnvironmentFailure):
        devices.open_arena_file(path, status.st_dev, status.st_ino)
    os.close(descriptor)


def test_memfd_is_opened_through_its_owner():
    descriptor = devices.create_memfd(4096)
    status = os.fstat(descriptor)
    opened = devices.open_memfd_of(os.getpid(), descriptor, status.st_dev, status.st_ino)
    os.pwrite(opened, b"same", 0)
    assert os.pread(descriptor, 4, 0) == b"same"
    os.close(opened)
    os.close(descriptor)
    with pytest.raises(EnvironmentFailure):
        devices.open_memfd_of(os.getpid(), descriptor, status.st_dev, status.st_ino)


def test_live_map_of_another_size_starts_from_zeros(tmp_path):
    descriptor, created = devices.open_live_map(tmp_path / "live", 8192)
    assert created
    os.pwrite(descriptor, b"bits", 0)
    os.close(descriptor)
    descriptor, created = devices.open_live_map(tmp_path / "live", 8192)
    assert not created
    assert os.pread(descriptor, 4, 0) == b"bits"
    os.close(descriptor)
    descriptor, created = devices.open_live_map(tmp_path / "live", 4096)
    assert created
    assert os.pread(descriptor, 4096, 0) == bytes(4096)
    os.close(descriptor)


def test_network_file_systems_are_recognised(tmp_path, monkeypatch):
    assert machine.network_file_system(tmp_path) == ""
    machine.refuse_network_file_system(tmp_path)
    monkeypatch.setattr(machine, "network_file_system", lambda path: "nfs4")
    with pytest.raises(ConfigError, match="nfs4"):
        machine.refuse_network_file_system(tmp_path)
