"""The exit codes of the command.

0    done; the lock is held
1    not done, or the lock is in the way; the reason is on stderr
2    wrong usage
3    the lock is free (LSB)
4    it could not be found out (LSB)
69   cannot be done here: something is not installed, or the system is not supported (EX_UNAVAILABLE)
71   `run` only: the system refused something (EX_OSERR); 126 and 127: the command cannot be executed, is not found
128+N  ended by signal N
"""

DONE = 0
FAILED = 1
USAGE = 2
FREE = 3
UNKNOWN = 4
UNAVAILABLE = 69
SYSTEM = 71
CANNOT_EXECUTE = 126
NOT_FOUND = 127
SIGNALLED = 128


class Unknown(Exception):
    """It could not be found out: why, and what to do."""
