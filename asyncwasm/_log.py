"""
Events for whoever runs the application. The only user of structlog.

Rule 1: silent until the application configures structlog or logging; never on stdout.
Rule 2: an event nobody listens to costs two look-ups, and imports neither of them.
"""

from __future__ import annotations

import sys
from typing import Any

_NAME = "asyncwasm"
DEBUG, INFO, WARNING = 10, 20, 30  # logging's numbers
_stdlib: Any = None  # our logger, once somebody has imported logging


def _configured() -> bool:
    """Return whether somebody has configured structlog."""
    # None also while another thread is in the middle of importing it.
    is_configured: Any = getattr(sys.modules.get("structlog"), "is_configured", None)
    return is_configured is not None and bool(is_configured())


def _is_heard(level: int) -> bool:
    """Return whether anybody has asked logging for our events of *level*."""
    global _stdlib
    if _stdlib is None:
        get_logger: Any = getattr(sys.modules.get("logging"), "getLogger", None)  # None as above
        if get_logger is None:
            return False
        _stdlib = get_logger(_NAME)
    # Without a handler, logging would have a last resort, on stderr.
    return bool(_stdlib.isEnabledFor(level) and _stdlib.hasHandlers())


def heard(level: int = DEBUG) -> bool:
    """Return whether an event of *level* goes anywhere; for where its facts cost something."""
    return _configured() or _is_heard(level)


def event(name: str, level: int = DEBUG, /, **facts: Any) -> None:
    """Emit event *name* with *facts*; units are part of the facts' names."""
    configured = _configured()
    if not configured and not _is_heard(level):
        return
    import structlog

    if configured:
        logger = structlog.get_logger(_NAME)
    else:
        logger = structlog.wrap_logger(
            _stdlib,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    logger.log(level, f"{_NAME}.{name}", **facts)
