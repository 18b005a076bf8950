"""`python -m stillwatch` is the command `stillwatch`."""

from stillwatch.cli import main

main()
