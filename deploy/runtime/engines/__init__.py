"""One runtime per file; each has `load(bundle, threads, options) -> RawEngine`."""
