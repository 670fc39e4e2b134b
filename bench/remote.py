"""A device made ready to measure: what it needs is there, and a worker can be started on it.

This machine and one behind SSH are treated alike, but that nothing need be copied to this one.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import deploy
from bench.attended import HOST_GONE_EXIT_CODE
from bench.errors import BenchError
from bench.measure import Job
from bench.reported import Measured, checked_audit, parsed
from deploy.bundle import MANIFEST_NAME, Bundle, sha256_file
from devices import Completed, ConnectionFailedError, Device
from devices.engines import ENGINES, engine_packages

# All that the worker imports: this list is what a device receives, and a test runs the worker with nothing else.
_CODE_ROOT = Path(deploy.__file__).resolve().parent.parent
_CODE_FILES = (
    "bench/__init__.py",
    "bench/attended.py",
    "bench/energy.py",
    "bench/errors.py",
    "bench/machine.py",
    "bench/measure.py",
    "bench/monitor.py",
    "bench/stages.py",
    "bench/throughput.py",
    "bench/wire.py",
    "deploy/__init__.py",
    "deploy/audit.py",
    "deploy/bundle.py",
    "deploy/cli.py",
    "deploy/errors.py",
    "deploy/manifest_checks.py",
    "deploy/runtime/**/*.py",
)

_OLDEST_PYTHON = (3, 11)

# A worker shows progress at least once per image; nothing takes this long but a machine that hangs.
_SILENCE_S = 1800.0
_HOST_SILENCE_S = 60.0  # six heartbeats missed: this machine or the network has gone
_LOCK_NAME = "measuring.lock"
_SAID_CHARACTERS = 400  # of what a worker that broke off wrote last

OnProgress = Callable[[str, str], None]


class Site:
    """A device with its facts read and the worker's code in place; bundles and images follow when they are used."""

    def __init__(self, device: Device, bundles: Sequence[Bundle] = (), images: Sequence[Sequence[Path]] = ()) -> None:
        """Connect, and push the code.

        Args:
            device: where to measure.
            bundles: to be measured; it is asked at once which of them are there.
            images: the sets of images to measure them on, likewise.

        Raises:
            BenchError: its Python is too old, or lacks numpy or Pillow.
            DeviceError: it cannot be reached or written to.
        """
        self.device = device
        self._pushed_images: dict[tuple[Path, ...], list[str]] = {}
        self._folders: dict[tuple[str, ...], str] = {}
        sets = [("code", code_files())]
        sets += [("bundles", _bundle_files(bundle)) for bundle in bundles]
        sets += [("data", _image_files(one)) for one in images]
        asked = [] if device.shares_files else [self._folder(*one) for one in sets]
        self._packages = self._checked_packages(device.facts(asked))
        self._code = str(_CODE_ROOT) if device.shares_files else self._push(*sets[0])

    def measure(
        self, bundle: Bundle, images: Sequence[Path], job: Mapping[str, Any], on_progress: OnProgress
    ) -> Measured:
        """Measure one bundle in a fresh process there.

        Args:
            bundle: an opened bundle of this machine.
            images: image files of this machine, in data set order.
            job: the fields of `Job` beside `bundle` and `images`.
            on_progress: is given stage and percentage.

        Raises:
            BenchError: the engine is not installed there, or the worker failed.
            DeviceError: the device failed.
        """
        self.check_engine(bundle.manifest.engine)
        on_progress("opening" if self.device.shares_files else "copying", "")
        there = self._image_paths(images)
        bundle_there = self._bundle_path(bundle)
        order = Job(
            bundle=bundle_there,
            images=tuple(there),
            meter=self.device.meter,
            host_silence_s=_HOST_SILENCE_S,
            lock=None if self.device.shares_files else f"{self.device.workdir}/{_LOCK_NAME}",
            **job,
        )

        def on_stderr(line: str) -> None:
            word, _, rest = line.partition(" ")
            stage, _, percent = rest.partition(" ")
            if word == "progress":
                on_progress(stage, percent)

        done = self.device.run(
            [*self.device.python, f"{self._code}/bench/measure.py", "-"],
            timeout_s=_SILENCE_S,
            stdin=order.to_json().encode("ascii") + b"\n",
            hold_stdin=True,
            on_stderr=on_stderr,
        )
        if done.returncode == HOST_GONE_EXIT_CODE:
            raise ConnectionFailedError(
                f"{self.device.name}: the worker there heard nothing of this machine for {_HOST_SILENCE_S:g} s and "
                "ended: run the bench again",
                may_return=True,
            )
        if done.returncode != 0:
            here = {bundle_there: str(bundle.path), **dict(zip(there, map(str, images), strict=True))}
            raise BenchError(_failure(done, here, self.device))
        return parsed(done.stdout, len(images) if order.accuracy else 0, self._where)

    def audit(self, bundle: Bundle, threads: int | None) -> Mapping[str, Any]:
        """What the engine executes there, in a fresh process; see `deploy.runtime.audit.audit_record`.

        Raises:
            BenchError: the engine is not installed there, or does not tell.
            DeviceError: the device failed.
        """
        self.check_engine(bundle.manifest.engine)
        there = self._bundle_path(bundle)
        count = threads or self.device.threads
        done = self.device.run(
            [*self.device.python, f"{self._code}/deploy/audit.py", there, "--json"]
            + ([] if count is None else ["--threads", str(count)]),
            timeout_s=_SILENCE_S,
        )
        for line in done.stdout.splitlines():
            if line.startswith('{"bundle"'):
                return checked_audit(json.loads(line)) | {"bundle": bundle.path.resolve().name}
        raise BenchError(_failure(done, {there: str(bundle.path)}, self.device))

    def check_engine(self, engine: str) -> None:
        """See that bundles of `engine` can run there.

        Raises:
            BenchError: no library for it is installed.
        """
        packages = engine_packages(engine)
        if not any(self._packages.get(package) for package in packages):
            raise BenchError(self._not_installed(f"{' or '.join(packages)} is not installed", packages[0], engine))

    def _checked_packages(self, facts: Mapping[str, Any]) -> Mapping[str, str | None]:
        version = tuple(int(part) for part in str(facts["python"]).split(".")[:2])
        if version < _OLDEST_PYTHON:
            raise BenchError(
                f"{self.device.name} has Python {facts['python']} as {self.device.python[0]}, expected 3.11 or newer: "
                "name another with python in devices.toml"
            )
        packages: Mapping[str, str | None] = facts["packages"]
        missing = [package for package in ("numpy", "pillow") if not packages.get(package)]
        if missing:
            what = f"{' and '.join(missing)} is not installed"
            raise BenchError(self._not_installed(what, " ".join(missing), " | ".join(ENGINES)))
        return packages

    def _not_installed(self, what: str, to_install: str, engine: str) -> str:
        python = self.device.python[0]
        mend = f"run {python} -m pip install {to_install}"
        if not self.device.shares_files:
            mend = f"python -m devices setup {shlex.quote(self.device.name)} --engine {engine} (or there: {mend[4:]})"
        return f"{self._where}{what} for {python}: {mend}"

    @property
    def _where(self) -> str:
        """What an error begins with: the device, unless it is this machine."""
        return "" if self.device.shares_files else f"{self.device.name}: "

    def _bundle_path(self, bundle: Bundle) -> str:
        if self.device.shares_files:
            return str(bundle.path.absolute())
        return self._push("bundles", _bundle_files(bundle))

    def _image_paths(self, images: Sequence[Path]) -> list[str]:
        if self.device.shares_files:
            return [str(path.absolute()) for path in images]
        if tuple(images) not in self._pushed_images:
            files = _image_files(images)
            folder = self._push("data", files)
            self._pushed_images[tuple(images)] = [f"{folder}/{name}" for name in files]
        return self._pushed_images[tuple(images)]

    def _push(self, kind: str, files: Mapping[str, Path]) -> str:
        return self.device.push(files, self._folder(kind, files))

    def _folder(self, kind: str, files: Mapping[str, Path]) -> str:
        """Where a set of files lies below the device's work folder; its content is read once."""
        key = (kind, *map(str, files.values()))
        if key not in self._folders:
            self._folders[key] = f"{kind}/{_digest(files)}"
        return self._folders[key]


def code_files() -> dict[str, Path]:
    """Relative name to path of every file that the worker needs."""
    found = [path for pattern in _CODE_FILES for path in _CODE_ROOT.glob(pattern)]
    return {path.relative_to(_CODE_ROOT).as_posix(): path for path in sorted(found)}


def code_digest() -> str:
    """A hash of every file that the worker needs."""
    return _digest(code_files())


def _bundle_files(bundle: Bundle) -> dict[str, Path]:
    return {name: bundle.path / name for name in (MANIFEST_NAME, *bundle.manifest.files)}


def _image_files(images: Sequence[Path]) -> dict[str, Path]:
    """Names of users' files are theirs; a number and a suffix are enough over there."""
    return {f"{index:06d}{path.suffix.lower()}": path for index, path in enumerate(images)}


def _digest(files: Mapping[str, Path]) -> str:
    listing = json.dumps([(name, sha256_file(path)) for name, path in sorted(files.items())])
    return hashlib.sha256(listing.encode()).hexdigest()[:32]


def _failure(done: Completed, host_paths: Mapping[str, str], device: Device) -> str:
    """One line that says where, what and why a worker failed, with the names of this machine's files."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("progress ")]
    explained = bool(lines) and lines[-1].startswith("error: ")
    said = lines[-1].removeprefix("error: ") if explained else " / ".join(lines)
    for there, here in host_paths.items():
        said = said.replace(there, here)
    command = shlex.join(done.argv)
    if explained:  # the worker's own words say what to do; for a file of this machine they are enough
        return (
            said if device.shares_files else f"{device.name}: {said} (exit code {done.returncode}, running {command})"
        )
    if len(said) > _SAID_CHARACTERS:
        said = f"… {said[-_SAID_CHARACTERS:]}"
    said = said or "it was killed; most often there was not enough memory"
    return f"{device.name}: {command} ended with exit code {done.returncode}: {said}"
