"""The built-in patients and models, made from packages of an index and cached."""
