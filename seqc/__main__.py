"""`python -m seqc` is `seqc`."""

from seqc.cli import main

if __name__ == "__main__":
    main()
