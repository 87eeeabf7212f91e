"""`python -m derp`: the same as the `derp` command."""

from derp.cli import main

if __name__ == "__main__":
    main()
