"""`python -m hsal_cli` is `hsal`."""

from hsal_cli.main import run

if __name__ == "__main__":
    run()
