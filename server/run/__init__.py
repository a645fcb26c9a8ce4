"""One study at its server, from the first signature to the last, and the folders that it leaves."""
