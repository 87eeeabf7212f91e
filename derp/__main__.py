"""`python -m derp`, and the `derp` command."""

import sys


def main() -> None:
    """The console script."""
    try:
        # Imported here: Ctrl-C ends a command also while its modules are being loaded.
        from derp.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
