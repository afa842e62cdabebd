"""
Events for whoever runs the application. The only user of structlog.

Rule 1: silent until the application configures structlog or logging; never on stdout.
Rule 2: an event nobody listens to costs two look-ups, and does not import structlog.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

_NAME = "asyncwasm"
_stdlib = logging.getLogger(_NAME)
_silent = logging.NullHandler()  # keeps logging's last resort off stderr
_stdlib.addHandler(_silent)


def _is_heard(level: int) -> bool:
    """Return whether anybody has asked logging for our events of *level*."""
    return _stdlib.isEnabledFor(level) and any(
        handler is not _silent for handler in (*_stdlib.handlers, *logging.root.handlers)
    )


def heard(level: int = logging.DEBUG) -> bool:
    """Return whether an event of *level* goes anywhere; for where its facts cost something."""
    # None also while another thread is in the middle of importing it.
    is_configured: Any = getattr(sys.modules.get("structlog"), "is_configured", None)
    return (is_configured is not None and is_configured()) or _is_heard(level)


def event(name: str, level: int = logging.DEBUG, /, **facts: Any) -> None:
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
            _stdlib,
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    logger.log(level, f"{_NAME}.{name}", **facts)
