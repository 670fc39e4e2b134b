"""Distillation of image classifiers: an image folder in, a small exported student out."""
