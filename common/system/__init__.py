"""The machine below everything: files, processes, locks, ports, users, and which program runs. Nothing of a study."""
