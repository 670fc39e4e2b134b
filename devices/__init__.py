"""Where a result is measured: this machine, or another over SSH, and the inventory that names them."""

from devices.device import Completed, Device
from devices.errors import ConnectionFailedError, DeviceError, InventoryError, TransferError
from devices.inventory import Entry, Inventory, chosen_names, load_inventory, open_device
from devices.local import LOCAL, LocalDevice
from devices.ssh import SshDevice

__all__ = [
    "LOCAL",
    "Completed",
    "ConnectionFailedError",
    "Device",
    "DeviceError",
    "Entry",
    "Inventory",
    "InventoryError",
    "LocalDevice",
    "SshDevice",
    "TransferError",
    "chosen_names",
    "load_inventory",
    "open_device",
]
