"""Forwards IP packets between two network namespaces, and delays or loses them on the way.

`python forwarder.py NAMESPACE NAMESPACE` creates a TUN device in each namespace and prints "ready".
Each line of standard input is a command, and is answered with a line:

- `loss 0.02`: lose this share of the packets in each direction.
- `delay 0.075 0.02`: delay packets by so many seconds in each direction, and by up to the second
  number more at random. Packets of one direction keep their order.
- `cut`, `restore`: lose every packet; end that.
- `forget 40000`, `remember 40000`: lose the packets of a TCP connection with this port, as a
  middlebox that has forgotten the connection does; end that.

The end of standard input ends the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LARGEST = 65536


def enter(namespace: int) -> None:
    """Move this thread into the network namespace of an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _open_device(namespace: str) -> int:
    file = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    enter(file)
    os.close(file)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"link0", _IFF_TUN | _IFF_NO_PI))
    return device


class _Forwarder:
    def __init__(self, devices: tuple[int, int]) -> None:
        self.devices = devices
        self.cut = False
        self.forgotten: list[bytes] = []
        self.loss = self.delay = self.jitter = 0.0
        self.rng = random.Random(7)
        self.waiting: list[tuple[float, int, int, bytes]] = []
        self.latest = dict.fromkeys(devices, 0.0)
        self.number = 0

    def obey(self, line: str) -> None:
        command, *values = line.split()
        if command == "loss":
            self.loss = float(values[0])
        elif command == "delay":
            self.delay, self.jitter = float(values[0]), float(values[1])
        elif command == "forget":
            self.forgotten.append(struct.pack("!H", int(values[0])))
        elif command == "remember":
            self.forgotten.remove(struct.pack("!H", int(values[0])))
        else:
            self.cut = command == "cut"

    def read(self, source: int) -> None:
        target = self.devices[0] if source == self.devices[1] else self.devices[1]
        while True:
            try:
                packet = os.read(source, _LARGEST)
            except BlockingIOError:
                return
            if self.cut or (self.loss and self.rng.random() < self.loss):
                continue
            if self.forgotten and self._is_forgotten(packet):
                continue
            if not self.delay and not self.waiting:
                _write(target, packet)
                continue
            due = time.monotonic() + self.delay + self.rng.uniform(0.0, self.jitter)
            due = self.latest[target] = max(due, self.latest[target])
            self.number += 1
            heapq.heappush(self.waiting, (due, self.number, target, packet))

    def _is_forgotten(self, packet: bytes) -> bool:
        start = 4 * (packet[0] & 15)  # of the TCP header, in a packet of IPv4
        ports = (packet[start : start + 2], packet[start + 2 : start + 4])
        return any(port in self.forgotten for port in ports)

    def deliver(self) -> float | None:
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, target, packet = heapq.heappop(self.waiting)
            if not self.cut:
                _write(target, packet)
        return None


def _write(device: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):  # the device is full or down: the packet is lost
        os.write(device, packet)


def main() -> None:
    """Forward packets until standard input ends."""
    devices = (_open_device(sys.argv[1]), _open_device(sys.argv[2]))
    forwarder = _Forwarder(devices)
    print("ready", flush=True)
    commands = sys.stdin.fileno()
    while True:
        ready, _, _ = select.select([*devices, commands], [], [], forwarder.deliver())
        for source in ready:
            if source != commands:
                forwarder.read(source)
        if commands in ready:
            line = os.read(commands, 4096).decode()
            if not line:
                return
            for each in line.splitlines():
                forwarder.obey(each)
                print("done", flush=True)


if __name__ == "__main__":
    main()
