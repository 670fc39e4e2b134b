"""What quantizing each block or layer of a student costs; `python -m deploy.sensitivity`."""

from deploy.sensitivity.measure import Cost, Probe, Sensitivity, layers_to_blame, measure

__all__ = ["Cost", "Probe", "Sensitivity", "layers_to_blame", "measure"]
