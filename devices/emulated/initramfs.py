"""The initial RAM disk of the emulated machine: busybox, one script, and the drivers in the order they load."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from devices.emulated.tools import EmulationError

# The disk, the network card, randomness for sshd's keys, the file system, and the layer over sysfs.
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "overlay")
_HELPERS = ("crc32c_generic",)  # ext4 asks for the algorithm by name; no field of the module tells
_FOLDERS = ("bin", "dev", "proc", "sys", "target", "modules")


def initial_ram_disk(busybox: Path, modules: Path, init: str) -> bytes:
    """The archive that the kernel unpacks into memory and starts.

    Args:
        busybox: a statically linked one.
        modules: folder of the kernel's modules, at any depth.
        init: script to start.

    Returns:
        A compressed archive in the "newc" format (kernel documentation, "initramfs buffer format").

    Raises:
        EmulationError: a driver lacks one that it depends on.
    """
    drivers = in_loading_order(DRIVERS + _HELPERS, {_name(path): path for path in modules.rglob("*.ko*")})
    entries = [(folder, stat.S_IFDIR | 0o755, b"") for folder in _FOLDERS]
    entries += [
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("init", stat.S_IFREG | 0o755, init.encode()),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in drivers).encode()),
    ]
    entries += [(f"modules/{name}", stat.S_IFREG | 0o644, content) for name, content in drivers.items()]
    return gzip.compress(_archive(entries), compresslevel=1, mtime=0)


def in_loading_order(wanted: Iterable[str], files: Mapping[str, Path]) -> dict[str, bytes]:
    """Modules and all that they depend on, each after what it depends on; what is not a module is in the kernel.

    Args:
        wanted: names with underscores.
        files: name to file, plain or compressed by xz.

    Returns:
        Name to the module itself, uncompressed.
    """
    loaded: dict[str, bytes] = {}
    begun: set[str] = set()

    def load(name: str) -> None:
        if name in begun or name not in files:
            return
        begun.add(name)
        content = _uncompressed(files[name])
        # Strings of the `.modinfo` section, see modinfo(8).
        needed = b",".join(re.findall(rb"\0(?:depends=|softdep=pre: )([^\0]*)(?=\0)", b"\0" + content))
        for other in re.split(r"[, ]+", needed.decode("ascii", "replace")):
            load(other.replace("-", "_"))
        loaded[name] = content

    for name in wanted:
        load(name)
    return loaded


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _uncompressed(path: Path) -> bytes:
    if path.suffix not in (".ko", ".xz"):
        raise EmulationError(f"{path.name} is compressed as {path.suffix}, expected a plain or xz kernel module")
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    written = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        # inode, mode, owner, group, links, time, size, four device numbers, length of the name, check
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        written += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        written += bytes(-len(written) % 4) + content
        written += bytes(-len(written) % 4)
    return bytes(written)
