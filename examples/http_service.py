"""A detection service: POST an image to /detect, get JSON. Standard library alone.

python examples/http_service.py runs/deploy/yolov8n-tflite-int8
curl --data-binary @street.jpg http://127.0.0.1:8000/detect

It has neither encryption nor passwords: put it behind a web server that does before it leaves this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import tempfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploy.cli import one_line, run_command
from deploy.errors import DatasetError, DeployError, ImageTooLargeError
from deploy.findings import as_record
from deploy.runtime import Detector, read_image

MOST_BYTES = 20 * 1024 * 1024
MOST_PIXELS = 50_000_000  # decoded, that is 150 MB
MOST_REQUESTS = 8  # at once: each may hold an image
MOST_CONNECTIONS = 64  # at once: each holds a thread, whatever it sends
MOST_SECONDS = 30.0  # for a connection from its first byte to its answer, however slowly the client sends
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow knows more, and runs other programs for some


class Service(ThreadingHTTPServer):
    """One detector for all requests: each is decoded in a thread of its own, the detector takes one at a time."""

    daemon_threads = False  # closing waits for the requests in hand

    def __init__(self, address: tuple[str, int], detector: Detector) -> None:
        super().__init__(address, Handler)
        self.detector = detector
        self.slots = threading.BoundedSemaphore(MOST_REQUESTS)
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, or close it if too many have one."""
        if not self.connections.acquire(blocking=False):
            return self.shutdown_request(request)
        try:
            return super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            self.connections.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, cut off where it takes too long."""
        deadline = threading.Timer(MOST_SECONDS, _cut_off, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line that a client has gone; anything else is a fault and shows its traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            return super().handle_error(request, client_address)
        return print(f"{client_address[0]}: {one_line(error)}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """GET /health and POST /detect; every answer is one line of JSON, and ends the connection."""

    server: Service
    protocol_version = "HTTP/1.1"  # of 1.0, curl waits a second before it sends a photo of more than 1 MB

    def do_GET(self) -> None:
        """Say what runs here."""
        if self.path != "/health":
            return self.answer(404, {"error": f"no {self.path}: GET /health or POST /detect"})
        return self.answer(200, {"status": "ok", **self.server.detector.engine.facts()})

    def do_POST(self) -> None:
        """Take an image and answer with its detections."""
        given = self.headers.get("Content-Length", "")
        if not given.isdecimal():
            return self.answer(411, {"error": "no Content-Length: send the image as the body of the request"})
        length = int(given[:20])  # Python refuses to convert thousands of digits
        if self.path != "/detect" or length > MOST_BYTES:
            self.discard(length)
            if self.path != "/detect":
                return self.answer(404, {"error": f"no {self.path}: GET /health or POST /detect"})
            return self.answer(413, {"error": f"the body has {length} bytes, at most {MOST_BYTES} are taken"})
        if not self.server.slots.acquire(blocking=False):
            self.discard(length)
            return self.answer(503, {"error": f"{MOST_REQUESTS} requests are in hand: try again"})
        try:
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError(f"the body ended after {len(body)} of {length} bytes")
            return self.answer(*self.detect(body))
        finally:
            self.server.slots.release()

    def detect(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and answer for an image file's bytes."""
        # Through a file: read_image knows turned images, odd pixel formats and broken files.
        with tempfile.NamedTemporaryFile(prefix="image-") as file:
            file.write(body)
            file.flush()
            try:
                found = self.server.detector(read_image(file.name, most_pixels=MOST_PIXELS, formats=FORMATS))
            except ImageTooLargeError as error:
                return 413, {"error": one_line(error).replace(file.name, "the image")}
            except DatasetError as error:
                return 400, {"error": one_line(error).replace(file.name, "the body")}
            except DeployError as error:
                return 500, {"error": one_line(error)}
        return 200, as_record(found, self.server.detector.manifest.class_names)

    def discard(self, length: int) -> None:
        """Read a body without keeping it: a client that is still sending would not see the answer."""
        left = length if length <= 5 * MOST_BYTES else 0  # who announces more is answered at once, heard or not
        while left > 0 and (part := self.rfile.read(min(left, 65536))):
            left -= len(part)

    def answer(self, status: int, fields: object) -> None:
        """Send JSON."""
        body = (json.dumps(fields) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class answers by itself, as to a method that it does not know: JSON too."""
        self.answer(code, {"error": message or explain or HTTPStatus(code).phrase})


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve detections over HTTP.")
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--conf", type=float, default=0.25, help="lowest score, 0..1 (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of one inference (default: all processors)")
    arguments = parser.parse_args()
    return run_command(lambda: serve(arguments), ValueError)


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may just have ended by itself
        connection.shutdown(socket.SHUT_RDWR)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to 65535")
    return int(text)


def serve(arguments: argparse.Namespace) -> int:
    """Answer requests until SIGINT or SIGTERM, then finish those in hand."""
    detector = Detector(arguments.bundle, conf=arguments.conf, threads=arguments.threads)
    with Service((arguments.host, arguments.port), detector) as service:
        # shutdown() waits for the loop below, so it must not run in the thread that it interrupts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=service.shutdown).start())
        print(f"http://{service.server_address[0]}:{service.server_address[1]}", flush=True)
        service.serve_forever(poll_interval=0.1)
    detector.close()
    print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
