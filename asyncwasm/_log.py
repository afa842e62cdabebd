"""
Events for whoever runs the application. The only user of structlog.

Rule 1: silent until the application configures structlog or logging; never on stdout.
Rule 2: an event nobody listens to costs two look-ups, and imports neither structlog nor logging.
"""

from __future__ import annotations

import sys
from typing import Any

DEBUG, INFO, WARNING = 10, 20, 30  # logging's levels; importing it takes milliseconds

_NAME = "asyncwasm"
_known: tuple[Any, Any] | None = None


def _stdlib() -> tuple[Any, Any]:
    """Return logging's logger of ours and its silent handler; None and None without logging."""
    global _known
    if _known is None:
        logging: Any = sys.modules.get("logging")
        # Of what is used here that comes last while another thread is importing it.
        null: Any = getattr(logging, "NullHandler", None)
        if null is None:
            return None, None
        silent = null()  # keeps logging's last resort off stderr
        logger = logging.getLogger(_NAME)
        logger.addHandler(silent)
        _known = logger, silent
    return _known


def _is_heard(level: int) -> bool:
    """Return whether anybody has asked logging for our events of *level*."""
    logger, silent = _stdlib()
    return (
        logger is not None
        and logger.isEnabledFor(level)
        and any(
            handler is not silent for handler in (*logger.handlers, *logger.manager.root.handlers)
        )
    )


def event(name: str, level: int = DEBUG, /, **facts: Any) -> None:
    """Emit event *name* with *facts*; units are part of the facts' names."""
    # None also while another thread is in the middle of importing it.
    is_configured: Any = getattr(sys.modules.get("structlog"), "is_configured", None)
    configured = is_configured is not None and is_configured()
    if not configured and not _is_heard(level):
        return
    import structlog

    if configured:
        logger = structlog.get_logger(_NAME)
    else:
        logger = structlog.wrap_logger(
            _stdlib()[0],
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    logger.log(level, f"{_NAME}.{name}", **facts)
