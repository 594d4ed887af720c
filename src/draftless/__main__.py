"""`python -m draftless`: the command."""

from draftless.cli import main

main()
