"""`python -m echo_cli`, the same as the console script."""

from echo_cli.cli import main

if __name__ == "__main__":
    main()
