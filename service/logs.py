"""Logging to standard error: one JSON object a line, or plain text."""

from __future__ import annotations

import logging
import logging.config
from typing import Literal


def configure_logging(*, level: str, style: Literal["json", "text"]) -> None:
    """Set up every logger of the process, uvicorn's included."""
    formatters = {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
        },
        "text": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s", "datefmt": "%H:%M:%S"},
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {style: formatters[style]},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # The access log is written by service.middleware, with timings.
            "loggers": {"uvicorn.access": {"level": "WARNING"}, "httpx": {"level": "WARNING"}},
        }
    )
