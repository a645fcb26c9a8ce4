"""The version of this program, which manifests and policies name."""

__version__ = "0.1.0"
