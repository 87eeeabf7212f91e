"""The tailnet command (layer L4): root.py has the group, serve.py and admin.py what it does."""

import sys


def main() -> None:
    """The console script."""
    try:
        # Imported here: Ctrl-C ends a command also while its modules are being loaded.
        from tailnet.cli.root import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
