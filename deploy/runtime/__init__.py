"""The device side: numpy and one engine, from an image to detections, masks or classes."""

from deploy.runtime.classifier import Classification, Classifier
from deploy.runtime.detections import Detections
from deploy.runtime.detector import Detector, default_threads
from deploy.runtime.draw import draw_detections
from deploy.runtime.engine import Engine, load_engine
from deploy.runtime.image import image_size, read_image
from deploy.runtime.letterbox import Letterbox, letterbox
from deploy.runtime.segmenter import Segmentation, Segmenter

__all__ = [
    "Classification",
    "Classifier",
    "Detections",
    "Detector",
    "Engine",
    "Letterbox",
    "Segmentation",
    "Segmenter",
    "default_threads",
    "draw_detections",
    "image_size",
    "letterbox",
    "load_engine",
    "read_image",
]
