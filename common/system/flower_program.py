"""One of Flower's programs in a process of which no dump is written and whose memory nobody reads.

``python -m grandrounds.common.system.flower_program NAME [ARGUMENT]...``: they hold keys as our own programs do.
"""

import sys
from importlib.metadata import distribution

from .privileges import keep_memory_private


def flower_program(name: str) -> list[str]:
    """How its command begins, in this installation and with no module of the working directory."""
    return [sys.executable, "-P", "-m", __name__, name]


def main() -> None:
    """Be that program."""
    keep_memory_private()
    del sys.argv[0]
    (script,) = distribution("flwr").entry_points.select(group="console_scripts", name=sys.argv[0])
    sys.exit(script.load()())


if __name__ == "__main__":
    main()
