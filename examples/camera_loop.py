"""Watch a camera and say what appears and what goes; the newest frame is always the next one. Ctrl-C ends it.

python examples/camera_loop.py runs/deploy/yolov8n-tflite-int8 --camera 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.cli import run_command
from deploy.runtime import Detector
from deploy.runtime.sources import open_source
from deploy.runtime.stream import Stream


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Watch a camera and say what appears and what goes.")
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--camera", default="0", help="number, /dev/videoN, an rtsp:// or http:// address, or a video")
    parser.add_argument("--conf", type=float, default=0.4, help="lowest score, 0..1 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="stop after this long (default: at Ctrl-C)")
    arguments = parser.parse_args()
    return run_command(lambda: watch(arguments), ValueError)


def watch(arguments: argparse.Namespace) -> int:
    """Print a line whenever the set of classes in view changes."""
    detector = Detector(arguments.bundle, conf=arguments.conf)
    names = detector.manifest.class_names
    seen: set[str] = set()
    # A camera is live: while the detector is busy, newer frames push out older ones.
    stream = Stream(detector, open_source(arguments.camera))
    try:
        for frame, found in stream:
            now = {names[class_id] for class_id in found.class_ids}
            for name in sorted(now ^ seen):
                print(f"{frame.timestamp_s:8.2f} s  {'+' if name in now else '-'} {name}", flush=True)
            seen = now
            if arguments.seconds and frame.timestamp_s >= arguments.seconds:
                break
    except KeyboardInterrupt:
        pass  # how a user ends it; the stream has stopped its threads and closed the camera
    stats = stream.stats()
    print(
        f"{stats.processed} frames at {stats.fps:.1f} FPS, {stats.dropped} dropped; "
        f"from capture to result {1e3 * stats.latency_p50_s:.0f} ms, 99 % within {1e3 * stats.latency_p99_s:.0f} ms",
        file=sys.stderr,
    )
    detector.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
