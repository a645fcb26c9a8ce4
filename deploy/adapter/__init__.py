"""A finished adapter in use: tried beside its base model, merged into it, exported for llama.cpp."""
