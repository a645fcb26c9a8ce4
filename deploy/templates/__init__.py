"""Studies, policies and settings in TOML that commands write out for people to edit."""
