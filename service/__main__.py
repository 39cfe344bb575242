"""``python -m service`` is the command ``clipserve``."""

from service.cli import main

main()
