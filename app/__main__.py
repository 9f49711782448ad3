"""The entry point, so small that even a Ctrl+C at once ends quietly."""

import os
import sys


def main() -> None:
    """The console script, and `python -m dslite.app`."""
    try:
        from dslite.app.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """End now: taking torch down in order takes half a second, and all that matters is written and closed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass  # the reader has enough
    except OSError:
        code = code or 1
    os._exit(code)


if __name__ == "__main__":
    main()
