"""`python -m thalweg`, which is what torchrun starts."""

from thalweg.cli import main

main()
