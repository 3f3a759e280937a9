"""Refuse connections to other machines in every Python process that a test starts.

Python imports this file by itself where its folder is on PYTHONPATH (see conftest.py).
"""

import socket
from typing import Any

HERE = ("127.0.0.1", "::1", "localhost")
connect = socket.socket.connect


def connect_here(self: socket.socket, address: Any) -> None:
    """Connect to this machine, or raise."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in HERE:
        raise ConnectionRefusedError(f"tests reach no other machine, and this is {address[0]}")
    connect(self, address)


socket.socket.connect = connect_here  # type: ignore[assignment,method-assign]
