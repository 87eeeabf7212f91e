"""The tailnet command (layer L4): root.py has the group, serve.py and admin.py what it does."""


def main() -> None:
    """The console script."""
    from tailnet.cli.root import run

    run()
