"""``python -m flows.cli`` is the console script ``anonymizer``."""

from flows.cli import main

main()
