"""`python -m stillwatch` is the command `stillwatch`."""

from stillwatch.cli.main import main

main()
