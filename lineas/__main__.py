"""`python -m lineas`: the command line."""

from lineas_cli import main

if __name__ == "__main__":
    main()
