"""Measurements behind the documents in `docs/results`, each reproducible with one command on a host."""
