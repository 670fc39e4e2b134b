"""Makes a virtual environment with one engine on the machine that runs this, whole or not at all.

Sent to a device as text, so it uses the standard library alone. It ends, and leaves nothing, as soon as its stdin does
or falls silent: then the host is gone.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "edge-distill venv: "  # a login script may write before us
_GONE = "the host is gone"
_PIP_WORDS = ("Collecting", "Downloading", "Installing", "Processing")  # lines of pip that show progress

# Run by the Python of the venv. Importing loads the native library, which is what fails for a wrong wheel; the sum
# makes numpy load its linear algebra.
_OPEN = """
import importlib.util, json, platform, sys
from importlib.metadata import version
import numpy
import PIL.Image
numpy.ones((2, 2)) @ numpy.ones((2, 2))
engine = sys.argv[1]
if engine == "onnx":
    import onnxruntime
    package, found = "onnxruntime", onnxruntime.get_available_providers()
elif engine == "openvino":
    import openvino
    package, found = "openvino", openvino.Core().available_devices
elif engine == "ncnn":
    import ncnn
    package, found = "ncnn", [ncnn.Net.__name__]
elif engine == "mnn":
    import MNN
    package, found = "mnn", [MNN.Interpreter.__name__]
elif importlib.util.find_spec("ai_edge_litert"):
    from ai_edge_litert.interpreter import Interpreter
    package, found = "ai-edge-litert", [Interpreter.__name__]
else:
    from tflite_runtime.interpreter import Interpreter
    package, found = "tflite-runtime", [Interpreter.__name__]
versions = {name: version(name) for name in (package, "numpy", "pillow")}
print(sys.argv[2] + json.dumps({"python": platform.python_version(), "packages": versions, "found": list(found)}))
"""


class VenvError(Exception):
    """The venv cannot be made; the message is one line."""


def inspect(request: dict[str, Any]) -> dict[str, Any]:
    """What is there already.

    Args:
        request: `venv` (absolute or `~/…`), `engine`, `workdir`.

    Returns:
        `venv` (absolute), `exists`, `opened` (see `make`) or `why` not, `can_make` (whether venvs can be made with
        this Python), `free_bytes` where the venv would be, `shares_space` (whether `workdir` has the same disk).
    """
    venv = _absolute(request["venv"])
    answer: dict[str, Any] = {"venv": str(venv), "exists": os.path.lexists(venv), "opened": None, "why": None}
    if answer["exists"]:
        try:
            answer["opened"] = _opened(venv, request["engine"], None)
        except VenvError as error:
            answer["why"] = str(error)
    place, workdir = _nearest(venv), _nearest(Path(request["workdir"]))
    answer["free_bytes"] = shutil.disk_usage(place).free
    answer["shares_space"] = place.stat().st_dev == workdir.stat().st_dev
    answer["can_make"] = _can_import("venv") and _can_import("ensurepip")
    return answer


def make(request: dict[str, Any], host: Host) -> dict[str, Any]:
    """Make a venv, install into it, open the engine, and only then give it its name.

    Args:
        request: `venv`, `engine`, `choices` (lists of requirements, the best one first), `wheels` (a folder to install
            from without any network, or None).
        host: who asked.

    Returns:
        `python` (version), `packages` (engine, numpy and Pillow to versions), `found` (what the engine offers).

    Raises:
        VenvError: a step failed. Nothing is left.
    """
    venv = _absolute(request["venv"])
    venv.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(venv)
    # Scripts of a venv hold its path; this ending is cut out of them once all is done. The process id lets a later run
    # tell an abandoned folder from one that is being filled.
    ending = f".partial-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial = venv.with_name(venv.name + ending)
    try:
        _say(f"making {venv}")
        _must([sys.executable, "-I", "-m", "venv", str(partial)], host, "python3 -m venv")
        temporary = partial / "tmp"  # on the same disk: /tmp is often in memory, too small for an engine
        temporary.mkdir()
        for number, requirements in enumerate(request["choices"], 1):
            if _installed(partial, requirements, request["wheels"], host, number == len(request["choices"])):
                break
        shutil.rmtree(temporary)
        _opened(partial, request["engine"], host)
        _cut_out(ending, partial)
        host.check()
        try:
            partial.rename(venv)
        except OSError as error:  # another host was faster, or something else took the name
            raise VenvError(
                f"{venv} appeared meanwhile ({error.strerror}): run this again to see what it is"
            ) from error
        return _opened(venv, request["engine"], host)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class Host:
    """The machine that asked, at the other end of stdin; once it is gone, no child process is left running."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._gone = False
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def check(self) -> None:
        """Raise `VenvError` if the host is gone."""
        if self._gone:
            raise VenvError(_GONE)

    def run(self, argv: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
        """Run a program to its end, passing on what tells of progress; returns exit status and all lines."""
        with self._lock:
            self.check()
            child = self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        lines = []
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines.append(line.strip())
                if line.startswith(_PIP_WORDS):
                    word, _, rest = lines[-1].partition(" ")
                    _say(f"{word} {rest.rsplit('/', 1)[-1]}")
            return child.wait(), lines
        finally:
            with self._lock:
                self._end_child()
                self._child = None
            child.wait()
            self.check()

    def _watch(self) -> None:
        while select.select([0], [], [], self._silence_s)[0] and os.read(0, 1 << 16):
            pass
        self._gone = True
        with self._lock:
            self._end_child()

    def _end_child(self) -> None:
        if self._child is not None and self._child.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)


def _installed(venv: Path, requirements: list[str], wheels: str | None, host: Host, last: bool) -> bool:
    """Install into a venv; False if there is no such package for this machine and another choice is left."""
    argv = [str(venv / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    argv += ["--no-cache-dir", "--only-binary=:all:", "--progress-bar=off", "--no-warn-script-location"]
    argv += ["--no-index", "--find-links", wheels] if wheels else ["--retries=2"]
    environment = {**os.environ, "TMPDIR": str(venv / "tmp")}
    if wheels:  # nothing but the folder counts
        environment = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
        environment["PIP_CONFIG_FILE"] = os.devnull
    code, lines = host.run([*argv, *requirements], environment)
    if code == 0:
        return True
    said = " / ".join(line[7:] for line in lines if line.startswith("ERROR: ")) or " / ".join(lines[-3:])
    everything = "\n".join(lines)
    advice = next((advice for word, advice in _PIP_ADVICE if word in everything), "")
    if not advice and "No matching distribution" in said:
        if not last:
            _say(f"no {requirements[0]} for this machine, trying the next choice")
            return False
        advice = ": it is not published for this machine and Python"
    if code < 0 and not said:
        said = _killed(code)
    raise VenvError(f"pip install {' '.join(requirements)} failed ({said[-300:] or _killed(code)}){advice}")


_PIP_ADVICE = (
    ("No space left", ": make room there"),
    ("Disk quota", ": make room there"),
    ("CERTIFICATE_VERIFY_FAILED", f": its clock says {time.strftime('%Y-%m-%d')}; if that is right, add --offline"),
    ("NewConnectionError", ": it does not reach a package index: add --offline"),
    ("Temporary failure in name resolution", ": it does not reach a package index: add --offline"),
    ("ConnectTimeoutError", ": it does not reach a package index: add --offline"),
)


def _opened(venv: Path, engine: str, host: Host | None) -> dict[str, Any]:
    """Import numpy, Pillow and the engine in a process of the venv's Python.

    Raises:
        VenvError: that failed; the message is the process' last line.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise VenvError(f"there is no {python}")
    argv = [str(python), "-I", "-c", _OPEN, engine, MARK]
    if host is None:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        code, lines = done.returncode, done.stdout.splitlines()
    else:
        code, lines = host.run(argv, dict(os.environ))
    for line in lines:
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line[len(MARK) :])
            return found
    said = [line.strip() for line in lines if line.strip()]
    raise VenvError(
        f"{engine} does not open there: {_killed(code) if code < 0 else (said or ['no output'])[-1][-300:]}"
    )


def _killed(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed; most often there was not enough memory"
    if code == -signal.SIGILL:
        return "an instruction that this processor lacks"
    return f"it ended with exit status {code}"


def _must(argv: list[str], host: Host, name: str) -> None:
    code, lines = host.run(argv, dict(os.environ))
    if code != 0:
        said = [line for line in lines if line] or [_killed(code)]
        raise VenvError(f"{name} failed: {said[-1][-300:]}")


def _absolute(venv: str) -> Path:
    path = Path.home() / venv[2:] if venv.startswith("~/") else Path(venv)
    if not path.is_absolute() or path in (Path.home(), Path("/")):
        raise VenvError(f"{venv!r} is no place for a venv: give ~/NAME or an absolute path")
    # Its settings are a file of lines, and the scripts that venv and pip write hold the path between double quotes.
    if ".." in path.parts or any(character in '"$`\\\x7f' or ord(character) < 32 for character in venv):
        raise VenvError(f'{venv!r} is no place for a venv: its own scripts would misread .. or any of "$`\\ in it')
    return path


def _nearest(path: Path) -> Path:
    """The path itself or the first folder above it that is there."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _can_import(module: str) -> bool:
    """Debian has `venv` without what it needs; only trying tells."""
    argv = [sys.executable, "-I", "-c", f"import {module}"]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _cut_out(ending: str, venv: Path) -> None:
    """Take the ending of the temporary name out of the venv's scripts and settings."""
    for path in (venv / "pyvenv.cfg", *(venv / "bin").iterdir()):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if ending.encode() in content:
                path.write_bytes(content.replace(ending.encode(), b""))


def _remove_abandoned(venv: Path) -> None:
    prefix = f"{venv.name}.partial-"
    for path in venv.parent.iterdir():
        pid = path.name[len(prefix) :].split("-")[0] if path.name.startswith(prefix) else ""
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
            shutil.rmtree(path, ignore_errors=True)


def _say(text: str) -> None:
    with suppress(OSError):  # the host may be gone
        print(f"progress {text}", file=sys.stderr, flush=True)  # noqa: T201


def _line_of_stdin() -> bytes:
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        sys.exit(f"error: {_GONE}")
    return line


def _stop(signal_number: int, frame: object) -> None:
    raise VenvError(f"signal {signal_number}")


def main() -> None:
    """Serve one request, a line of JSON on stdin: `do` is "inspect" or "make"."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    request = json.loads(_line_of_stdin().decode())
    try:
        if request["do"] == "inspect":
            answer = inspect(request)
        else:
            try:
                answer = make(request, Host(request["silence_s"]))
            finally:
                if request["remove"]:
                    shutil.rmtree(request["remove"], ignore_errors=True)
        print(MARK + json.dumps(answer), flush=True)  # noqa: T201
    except (VenvError, OSError) as error:
        with suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)


if __name__ == "__main__":
    main()
