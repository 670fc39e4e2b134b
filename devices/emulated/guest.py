"""The scripts that run inside the emulated machine, as text: its two inits, and the Pi's firmware tool."""

from __future__ import annotations

# Process 1 of the initial RAM disk: drivers, network, then the disk image as root.
FIRST_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
while read -r module; do insmod "/modules/$module" || echo "cannot load $module"; done < /modules/order
tries=0
while [ ! -b /dev/vda ] || [ ! -e /sys/class/net/eth0 ]; do
  tries=$((tries + 1)); [ $tries -lt 1200 ] || { echo "no disk or no network card"; poweroff -f; }
  usleep 50000
done
mount -t ext4 -o rw,noatime /dev/vda /target || poweroff -f
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
for folder in proc sys dev; do mount -o move /$folder /target/$folder; done
exec switch_root /target /usr/sbin/board-init
"""

# Process 1 afterwards: no init system, only what an ssh login needs and what a Pi shows to a program that asks.
BOARD_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/pts /dev/shm /run /tmp
mount -t devpts none /dev/pts
for folder in /dev/shm /run; do mount -t tmpfs none $folder; done
mount -t tmpfs -o mode=1777 none /tmp
mkdir -p /run/sshd /run/firmware
chmod 777 /run/firmware
hostname raspberrypi
ldconfig

if mount -t tmpfs none /sys/class/thermal 2>/dev/null; then
  zone=/sys/class/thermal/thermal_zone0
  mkdir $zone
  echo cpu-thermal > $zone/type
  echo 48312 > $zone/temp
fi

# sysfs takes no new folders: the governor's lie in a layer above it.
layer=/run/cpufreq-layer
policy=$layer/cpufreq/policy0
mkdir -p $policy
echo ondemand > $policy/scaling_governor
for name in scaling_cur_freq scaling_max_freq cpuinfo_max_freq; do echo 1800000 > $policy/$name; done
echo 600000 > $policy/scaling_min_freq
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  mkdir -p $layer/${core##*/}
  ln -s ../cpufreq/policy0 $layer/${core##*/}/cpufreq
done
mount -t overlay -o lowerdir=$layer:/sys/devices/system/cpu none /sys/devices/system/cpu

echo "board-init: ready $(cut -d' ' -f1 /proc/uptime) s after the kernel" > /dev/console
while :; do /usr/sbin/sshd -D -e 2> /dev/console; sleep 1; done
"""

# What it answers is steered by files named like the command, e.g. /run/firmware/get_throttled.
VCGENCMD = """#!/bin/sh
[ -r "/run/firmware/$1" ] && exec cat "/run/firmware/$1"
case "$1" in
  get_throttled) echo "throttled=0x0" ;;
  measure_temp) echo "temp=48.3'C" ;;
  measure_volts) echo "volt=0.8500V" ;;
  version) echo "an emulated board has no firmware" ;;
  *) echo 'error=1 error_msg="Command not registered"'; exit 255 ;;
esac
"""

SSHD_CONFIG = """HostKey /etc/ssh/ssh_host_ed25519_key
AllowUsers pi
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxStartups 100:30:200
Subsystem sftp /usr/lib/openssh/sftp-server
"""
