"""``python -m segops``: the demo, and what this machine can run."""

import sys


def main() -> None:
    """Run the command line, or say what it lacks."""
    try:
        from segops.cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(
            f'segops: the command line needs {error.name}: pip install "segops[cli]" where segops is installed, '
            "pip install typer rich matplotlib pillow scikit-image in a checkout"
        )
    app(prog_name="python -m segops" if sys.argv[0].endswith("__main__.py") else None)


if __name__ == "__main__":
    main()
