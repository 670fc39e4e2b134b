"""Student to bundle: export, quantize and compile for one runtime, and run it on a device."""
