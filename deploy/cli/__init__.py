"""The ``grandrounds`` command."""
