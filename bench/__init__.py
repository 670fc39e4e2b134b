"""Bundle to result: latency, memory and accuracy, measured on the device itself."""
