"""Run the command line: `python -m cplane` is the same as `cplane`."""

from cplane.cli import main

if __name__ == "__main__":
    main()
