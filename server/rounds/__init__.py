"""Rounds, attempts and the end of a study at the server: state machines that take messages and return messages."""
