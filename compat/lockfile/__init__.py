"""Stand-ins for the modules of lockfile 0.12.2."""
