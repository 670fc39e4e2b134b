"""The whole path on generated data: a teacher, a student distilled from it, six bundles, a bench, a report.

Every step is a command a user would type; each is printed before it runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent

# The same schedule for both: 384 images give too few optimizer steps at ultralytics' nominal batch of 64.
DATA = "--data data/shapes.yaml --imgsz 128 --batch 16 --seed 0"
SCHEDULE = "optimizer=AdamW lr0=0.001 warmup_epochs=1 nbs=16 mosaic=0"
STEPS = (
    ("generate 384 images of shapes", f"python {shlex.quote(str(HERE / 'shapes.py'))} --out data"),
    (
        "train a teacher, YOLOv8-s from scratch",
        f"python -m distill.yolo --losses none --student yolov8s.yaml {DATA} --epochs 9 --out runs/distill/teacher"
        f" --set {SCHEDULE}",
    ),
    (
        "distil it into a YOLOv8-n",
        f"python -m distill.yolo --teacher runs/distill/teacher/student/student.pt --student yolov8n.yaml {DATA}"
        f" --epochs 10 --set {SCHEDULE}",
    ),
    ("deploy for ONNX Runtime, float", "python -m deploy.onnx"),
    ("deploy for ONNX Runtime, int8", "python -m deploy.onnx --int8"),
    ("deploy for OpenVINO, float", "python -m deploy.openvino"),
    ("deploy for OpenVINO, int8", "python -m deploy.openvino --int8"),
    ("deploy for TFLite, float", "python -m deploy.tflite"),
    ("deploy for TFLite, int8", "python -m deploy.tflite --int8"),
    ("bench the six bundles on this machine", f"python {shlex.quote(str(CHECKOUT / 'bench' / 'run.py'))}"),
)


def main() -> int:
    """Command line; returns the exit code of the first step that failed, or 0."""
    parser = argparse.ArgumentParser(description="Run the whole path on generated data.")
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="working folder (default: demo-run)")
    parser.add_argument("--open", action="store_true", help="open the report in a browser at the end")
    arguments = parser.parse_args()
    folder = _unused(arguments.out.resolve())
    folder.mkdir(parents=True)
    started = time.monotonic()
    steps = [*STEPS, ("report", "python -m bench.report" + (" --open" if arguments.open else ""))]
    for number, (title, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {time.monotonic() - started:4.0f} s  {title}\n$ {' '.join(command.split())}")
        sys.stdout.flush()
        code = _run(command, folder)
        if code != 0:
            print(f"error: step {number} ({title}) ended with exit code {code}; what it wrote is in {folder}")
            return code
    print(f"\ndone in {time.monotonic() - started:.0f} s: everything is in {folder}")
    return 0


def _run(command: str, folder: Path) -> int:
    words = shlex.split(command)
    words[0] = sys.executable
    # The demo needs no internet: ultralytics must neither look for updates nor install packages.
    environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    try:
        return subprocess.run(words, cwd=folder, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _unused(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


if __name__ == "__main__":
    sys.exit(main())
