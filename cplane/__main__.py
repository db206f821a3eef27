"""`python -m cplane` is `cplane`."""

from cplane.cli import main

if __name__ == "__main__":
    main()
