"""Signing keys, hashes and the generator of keystream; nothing here knows what is signed or drawn for."""
