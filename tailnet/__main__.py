"""`python -m tailnet` is the tailnet command (layer L4)."""

from tailnet.cli import main

if __name__ == "__main__":
    main()
