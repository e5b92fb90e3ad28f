"""Ends the program at once on a signal."""

import os
from typing import NoReturn


def quit_at_once(number: int, frame: object) -> NoReturn:
    """Signal handler: exits with code 130, without waiting for anything. Reader processes end by themselves."""
    os.write(2, b"interrupted\n")
    os._exit(130)
