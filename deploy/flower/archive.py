"""The archive that Flower makes of its app, which names installed code and has none of its own."""

import hashlib
from importlib import resources
from pathlib import Path


def app_folder() -> Path:
    """The Flower app, which names installed code and has none of its own."""
    return Path(str(resources.files(__package__).joinpath("app")))


def app_archive() -> bytes:
    """The app's archive, as Flower builds it on this machine."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(app_folder())


def app_sha256() -> str:
    """The archive's hash."""
    return hashlib.sha256(app_archive()).hexdigest()
