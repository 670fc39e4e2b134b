"""The device side: numpy and one engine, from an image to detections."""

from deploy.runtime.detections import Detections

__all__ = ["Detections"]
