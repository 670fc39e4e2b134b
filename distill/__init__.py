"""Distillation of a heavy YOLOv8 teacher into a small student: teacher + data -> ``student/``."""
