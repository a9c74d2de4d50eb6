"""Stand-ins for the modules of python-daemon 3.1.2: only `daemon.pidfile` has a lock."""
