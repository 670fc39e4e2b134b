"""The disk image of the emulated machine: Debian's packages unpacked, a user who may log in, the engines' wheels."""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from devices import wheels
from devices.emulated import guest
from devices.emulated.boards import PACKAGES, SUITES, Suite, engine_requirements
from devices.emulated.initramfs import initial_ram_disk
from devices.emulated.tools import TO_BUILD, EmulationError, require, run_tool
from devices.engines import Recipe

USER = "pi"
PYTHON = f"/home/{USER}/venv/bin/python"
_USER_ID = 1000
_DISK = "3G"  # sparse: it takes here what is in it
_NOT_UNPACKED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_DONE = "image.json"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """A built image: its files are below `folder`."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """For `qemu -kernel`."""
        return self.folder / "kernel"

    @property
    def ram_disk(self) -> Path:
        """For `qemu -initrd`."""
        return self.folder / "initramfs.gz"

    @property
    def disk(self) -> Path:
        """A file system, the root of the machine."""
        return self.folder / "root.ext4"

    @property
    def key(self) -> Path:
        """Private key that logs in as `USER`."""
        return self.folder / "login_key"

    @property
    def host_key(self) -> str:
        """Public key of the machine's sshd: type and key."""
        return " ".join((self.folder / "host_key.pub").read_text(encoding="ascii").split()[:2])


def find_image(cache: Path, suite: str) -> Image | None:
    """The image of these sources in the cache, if it was built."""
    folder = _folder(cache, suite)
    return Image(folder) if (folder / _DONE).is_file() else None


def build_image(cache: Path, suite: str, log: Log) -> Image:
    """Build the image, or find it built.

    Args:
        cache: folder that keeps images; made where it is not there. Older images of the suite are removed from it.
        suite: one of `SUITES`.
        log: is told what happens.

    Raises:
        EmulationError: a program is missing or failed. Nothing half-made is left.
        DeviceError: the wheels could not be fetched.
    """
    if (found := find_image(cache, suite)) is not None:
        return found
    require(TO_BUILD)
    folder = _folder(cache, suite)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    try:
        root = partial / "root"
        _unpack_debian(suite, partial, root, log)
        _install_engines(SUITES[suite], partial, root, log)
        _compile(SUITES[suite], root, log)
        log("writing the disk image")
        _make_keys(partial)
        _configure(partial, root)
        _take_kernel(partial, root)
        run_tool(
            "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, partial / "root.ext4", _DISK
        )
        shutil.rmtree(root)
        about = {"suite": suite, **asdict(SUITES[suite]), "packages": PACKAGES, "wheels": engine_requirements()}
        (partial / _DONE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        for old in cache.glob(f"{suite}-*"):
            shutil.rmtree(old)  # a machine that runs from one keeps it open
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Image(folder)


def _folder(cache: Path, suite: str) -> Path:
    """Named by all that goes into it, so that a changed script or requirement makes another image."""
    if suite not in SUITES:
        raise EmulationError(f"there is no suite {suite!r}: known are {', '.join(SUITES)}")
    here = Path(__file__).parent
    sources = [(here / f"{name}.py").read_bytes() for name in ("image", "guest", "initramfs")]
    what = [repr((SUITES[suite], PACKAGES, engine_requirements())).encode(), *sources]
    return cache / f"{suite}-{hashlib.sha256(b''.join(what)).hexdigest()[:12]}"


def _unpack_debian(suite: str, partial: Path, root: Path, log: Log) -> None:
    """The packages' files, without running anything of theirs: it is for another processor."""
    log(f"fetching and unpacking Debian {suite}")
    archive = partial / "debian.tar"
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_UNPACKED]
    options += ['--aptopt=Acquire::Languages "none"', '--aptopt=Apt::Install-Recommends "false"']
    packages = ",".join((*PACKAGES, SUITES[suite].kernel))
    run_tool(
        "mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", *options, f"--include={packages}", suite, archive
    )
    root.mkdir()
    with tarfile.open(archive) as packed:
        # Device files are the kernel's (devtmpfs), and only root may make them.
        packed.extractall(root, (one for one in packed if not one.isdev()), filter="fully_trusted")
    archive.unlink()


def _install_engines(suite: Suite, partial: Path, root: Path, log: Log) -> None:
    """A virtual environment with every engine, put together from wheels without running its Python."""
    fetched = partial / "wheels"
    wheels.download(suite.target, [Recipe("every engine", engine_requirements(), 0)], fetched, log)
    log("installing the engines")
    venv = root / f"home/{USER}/venv"
    packages = venv / f"lib/python3.{suite.target.minor}/site-packages"
    packages.mkdir(parents=True)
    for wheel in fetched.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                _install_member(archive, member, packages)
    shutil.rmtree(fetched)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to("/usr/bin/python3")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n", encoding="ascii")


def _install_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, packages: Path) -> None:
    """One file of a wheel; of its spread-out data (PEP 427) only what is imported."""
    parts = PurePosixPath(member.filename).parts
    if parts[0].endswith(".data"):
        if parts[1] not in ("purelib", "platlib"):
            return
        parts = parts[2:]
    if member.is_dir() or ".." in parts:
        return
    target = packages.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive.read(member))
    target.chmod((member.external_attr >> 16 & 0o777) | 0o644)


def _compile(suite: Suite, root: Path, log: Log) -> None:
    """Byte code for all of Python, which each boot would make anew otherwise: an emulated import takes half the time.

    Only a Python of the same version can; its byte code does not depend on the processor.
    """
    version = f"python3.{suite.target.minor}"
    if sys.version_info[:2] != (3, suite.target.minor):
        log(f"no {version} here to compile the modules with: the first import after a boot will take longer")
        return
    log("compiling its Python modules")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH  # the copy into the image must not make it look outdated
    for folder in (f"usr/lib/{version}", f"home/{USER}/venv/lib/{version}/site-packages"):
        compileall.compile_dir(root / folder, stripdir=root, quiet=2, force=True, invalidation_mode=mode)


def _make_keys(partial: Path) -> None:
    for name in ("login_key", "host_key"):
        run_tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"emulated-{name}", "-f", partial / name)


def _configure(partial: Path, root: Path) -> None:
    """What the packages' own scripts would have done, as far as a login needs it."""
    for name, master in (("passwd", "passwd.master"), ("group", "group.master")):
        known = (root / "usr/share/base-passwd" / master).read_text(encoding="ascii")
        added = {
            "passwd": "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{_USER_ID}:{_USER_ID}::/home/{USER}:/bin/bash\n",
            "group": f"{USER}:x:{_USER_ID}:\n",
        }[name]
        _write(root / "etc" / name, known + added)
    users = [line.partition(":")[0] for line in (root / "etc/passwd").read_text(encoding="ascii").splitlines()]
    _write(root / "etc/shadow", "".join(f"{name}:*:20000:0:99999:7:::\n" for name in users), 0o600)
    _write(root / "etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
    _write(root / "etc/hostname", "raspberrypi\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost raspberrypi\n")
    _write(root / "etc/ssh/sshd_config", guest.SSHD_CONFIG)
    _write(root / "etc/ssh/ssh_host_ed25519_key", (partial / "host_key").read_text(encoding="ascii"), 0o600)
    (partial / "host_key").unlink()
    home = root / "home" / USER
    _write(home / ".ssh/authorized_keys", (partial / "login_key.pub").read_text(encoding="ascii"), 0o600)
    _write(root / "usr/sbin/board-init", guest.BOARD_INIT, 0o755)
    _write(root / "usr/bin/vcgencmd", guest.VCGENCMD, 0o755)
    if not (root / "usr/bin/awk").exists():
        (root / "usr/bin/awk").symlink_to("mawk")
    if os.geteuid() == 0:  # else all is owned by whoever builds, who is often user 1000 as well
        for path in (home, *home.rglob("*")):
            os.chown(path, _USER_ID, _USER_ID, follow_symlinks=False)


def _take_kernel(partial: Path, root: Path) -> None:
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), partial / "kernel")
    places = [root / "usr/lib/modules", root / "lib/modules"]
    modules = next(place for place in places if place.is_dir())
    ram_disk = initial_ram_disk(root / _busybox(root), modules, guest.FIRST_INIT)
    (partial / "initramfs.gz").write_bytes(ram_disk)
    for path in (*places, root / "boot"):
        shutil.rmtree(path, ignore_errors=True)  # loaded already by the time the disk is mounted


def _busybox(root: Path) -> str:
    return next(place for place in ("usr/bin/busybox", "bin/busybox") if (root / place).is_file())


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
