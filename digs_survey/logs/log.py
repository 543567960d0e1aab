"""What a command did in a run directory, as JSON lines that a person and a monitoring system can follow.

Every process that works in a run directory writes one file, ``logs/TIME-PID.jsonl``. What is told on the way goes
through the standard :mod:`logging`; a message of the package's loggers is a line of the file, and a warning is shown
in the terminal too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from digs_survey.errors import DigsError
from digs_survey.logs.command_line import safe_command
from digs_survey.versions import __version__

__all__ = ["RunLog", "event", "exit_code", "run_log", "stage_log"]

_WHOLE_AT = ("start", "stage_end", "error", "end")
"""Events at which a log in an object store, which cannot be appended to, is written anew."""

log = logging.getLogger(__name__)


def event(name: str, message: str, *, level: int = logging.INFO, stage: str | None = None, **fields: Any) -> None:
    """Tell the log of an event with fields of its own.

    Parameters
    ----------
    name : str
        What kind of event, such as "progress".
    message : str
        The same for people.
    level : int
    stage : str, optional
        Default: the stage that is running.
    **fields
        Values that JSON has, or numpy's numbers.
    """
    log.log(level, message, extra={"event": name, "stage": stage, "fields": fields})


def exit_code(error: BaseException | None) -> int:
    """Return the code that a command ends with when this error ends it (None: no error)."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else int(code is not None)


@contextmanager
def run_log(run_dir: Path, show: Callable[[str], None]) -> Iterator[RunLog]:
    """Keep a log of the work in a run directory; it is there once :meth:`RunLog.begin` was called.

    An error that comes earlier is logged if the run directory was there before, and may be written.

    Parameters
    ----------
    run_dir : Path
    show : callable
        Shows a line in the terminal: warnings, and that the log cannot be written.
    """
    logger = logging.getLogger("digs_survey")
    handler, terminal = RunLog(run_dir / "logs", show), _Terminal(show)
    # Whoever has set up logging sees the warnings there.
    handlers = [handler] if logging.getLogger().handlers else [handler, terminal]
    level = logger.level
    logger.setLevel(logging.INFO)
    for one in handlers:
        logger.addHandler(one)
    failure: BaseException | None = None
    try:
        yield handler
    except BaseException as error:
        failure = error
        raise
    finally:
        if failure is not None and handler.local and run_dir.is_dir() and os.access(run_dir, os.W_OK):
            handler.begin()
        logger.removeHandler(terminal)
        _end(failure)
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _end(error: BaseException | None) -> None:
    code = exit_code(error)
    if error is not None:
        expected = isinstance(error, (DigsError, KeyboardInterrupt)) or hasattr(error, "exit_code")
        log.error(
            str(error) or type(error).__name__,
            extra={"event": "error", "fields": {"type": type(error).__name__}},
            exc_info=None if expected else error,
        )
    event("end", f"ends with exit code {code}", exit_code=code)


@contextmanager
def stage_log(name: str, total: int, unit: str, record: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Log the begin and the end of a stage.

    Parameters
    ----------
    name : str
    total : int
        Units of work of the whole stage.
    unit : str
    record : callable
        Returns what the manifest says of the stage; asked at its end.
    """
    event("stage_begin", f"{name} begins", stage=name, total=total, unit=unit)
    started = time.perf_counter()
    try:
        yield
    finally:
        found = record()
        event(
            "stage_end",
            f"{name} is {found['status']}",
            level=logging.INFO if found["status"] == "done" else logging.ERROR,
            stage=name,
            seconds=round(time.perf_counter() - started, 3),
            **{key: found.get(key) for key in ("status", "rows", "wall_s", "core_s")},
        )


class RunLog(logging.Handler):
    """Writes records as JSON lines to a file of this process alone.

    Parameters
    ----------
    folder : Path
        Of all logs of a run directory. Where it is not on a local file system, the file is written whole at the
        end of each stage and of the command.
    show : callable
        Told once if the log cannot be written; the work goes on without it.
    """

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.opened = time.time()
        now = datetime.fromtimestamp(self.opened, UTC)
        self.path = folder / f"{now:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.jsonl"
        self.local = isinstance(folder, Path)
        self.stage: str | None = None
        self.setFormatter(_JsonLines())
        self._show = show
        self._lines: list[str] = []
        self._file: IO[str] | None = None
        self._begun = self._broken = False

    def begin(self, **fields: Any) -> None:
        """Write the first line, with the command and ``fields``, and from now on every line as it comes."""
        if self._begun:
            return
        about = {"command": safe_command(), "digs_survey": __version__, **fields}
        record = logging.makeLogRecord(
            {"name": __name__, "levelno": logging.INFO, "levelname": "INFO", "msg": about["command"]}
            | {"event": "start", "fields": about, "created": self.opened}
        )
        self.acquire()
        try:
            self._lines.insert(0, self.format(record))
            self._begun = True
            self._write(whole=True)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record (logging calls this, one thread at a time)."""
        if self._broken:
            return
        name = getattr(record, "event", None)
        if name == "stage_begin":
            self.stage = getattr(record, "stage", None)
        if getattr(record, "stage", None) is None:
            record.stage = self.stage
        if name == "stage_end":
            self.stage = None
        self._lines.append(self.format(record))
        if self._begun:
            self._write(whole=name in _WHOLE_AT)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _write(self, *, whole: bool) -> None:
        try:
            if self.local:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("x", encoding="utf-8")
                self._file.write("".join(self._lines))
                self._file.flush()
                self._lines.clear()
            elif whole:
                self.path.write_text("".join(self._lines), encoding="utf-8")
        # Object stores raise errors of their own, and none of them is worth the run.
        except Exception as error:
            self._broken = True
            self._lines.clear()
            self._show(f"the log {self.path} cannot be written ({type(error).__name__}: {error}); going on without it")


class _JsonLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self.host = socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        name = "warning" if record.levelno >= logging.WARNING else "message"
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", name),
            "stage": getattr(record, "stage", None),
            "message": record.getMessage(),
            "logger": record.name,
            "host": self.host,
            "pid": os.getpid(),
            **{key: _finite(value) for key, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=_plain) + "\n"


def _finite(value: Any) -> Any:
    """Return a number that JSON can say, None for NaN and the like."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value that it does not know."""
    return value.item() if hasattr(value, "item") else str(value)


class _Terminal(logging.Handler):
    """Shows warnings where the bars are, which a line printed past them would tear."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        # What ends or fails is printed by those who know how.
        if not hasattr(record, "event"):
            self._show(record.getMessage())
