"""`python -m refpeft` is `refpeft`."""

from refpeft.cli import main

main(prog_name="refpeft")
