"""An emulated Raspberry Pi: a real arm64 Debian with a real sshd under QEMU, reachable from this machine alone.

Its results are marked `emulated` and never pass for a Pi's: what runs there is what runs on a Pi, how fast is not.
"""
