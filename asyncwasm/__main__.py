"""``asyncwasm`` and ``python -m asyncwasm``."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """
    Run the command line, and return the exit code.

    0: done. 1: it could not be done, or whoever read the output went away. 2: the command line
    makes no sense, or something has to be installed for it. 130: Ctrl-C.
    """
    try:
        try:
            import click
            import rich  # noqa: F401
        except ImportError:
            sys.stderr.write(
                "the command line needs click and rich: python -m pip install 'asyncwasm[cli]'\n"
            )
            return 2
        from .cli import commands

        for stream in (sys.stdout, sys.stderr):
            # A name that the terminal's encoding lacks must not end the command.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        try:
            code = commands.main(prog_name="asyncwasm", standalone_mode=False)
            sys.stdout.flush()
        except click.ClickException as exc:
            exc.show()
            return exc.exit_code
        except click.Abort:  # what click makes of KeyboardInterrupt
            return 130
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Nobody reads any more, so what is left in the buffers must not be written at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
