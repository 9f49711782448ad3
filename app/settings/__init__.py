"""config.toml, profiles, and which setting wins."""
