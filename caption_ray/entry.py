"""The one way in for every job: a command line in, one call, JSON on stdout, logs on stderr, an exit code.

Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped as asked with work left, 130 interrupted from the keyboard, 143
ended by SIGTERM.
"""

import errno
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import tyro
from pydantic import ValidationError

from caption_ray.config import Experiment, Settings
from caption_ray.errors import CaptionRayError, UsageError
from caption_ray.logs import configure_logging
from caption_ray.presets import PRESETS

Arguments = TypeVar("Arguments")
PresetArguments = TypeVar("PresetArguments", bound=Settings)

_EXTRA = frozenset({"optuna", "ruamel"})
"""Packages of the extra `tune`, for sweeps and promotion."""

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

logger = logging.getLogger(__name__)


def run_job(
    main: Callable[[Arguments], Mapping[str, object]], arguments: type[Arguments], description: str | None = None
) -> NoReturn:
    """Parse the command line, run `main` and end the process.

    `arguments` is anything that tyro parses: a frozen settings model, whose docstring and fields become
    the help, or the type that `tyro.extras.subcommand_type_from_defaults` builds, whose help has the `description`.

    What `main` returns is printed as one JSON object, the last line of stdout; everything else that this
    process or its children write to stdout goes to stderr. A CaptionRayError ends the job with its message
    alone (and its result, if it carries one) and its exit code, a PermissionError likewise with 2 and a full disk with
    1; any other exception with a traceback and 1.
    `--help` ends it with 0, a wrong command line with 2.
    """
    parsed = _parse(arguments, description)
    configure_logging()
    stdout = _move_stdout_to_stderr()
    try:
        _print_result(main(parsed), stdout)
    except CaptionRayError as error:
        logger.error("%s", error)
        if error.result is not None:
            _print_result(error.result, stdout)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        logger.error("interrupted")
        _leave(130)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        logger.error("terminated")  # Ray has made an exit of the signal
        _leave(128 + signal.SIGTERM)
    except PermissionError as error:
        logger.error("%s; choose a place that you may read and write", error)
        _leave(UsageError.exit_code)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRA:
            logger.error("%s is not installed: pip install -e '.[tune]'", error.name)
            _leave(UsageError.exit_code)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            logger.error("%s; make room, or choose another place, and give the same command again", error)
            _leave(1)
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _parse(arguments: type[Arguments], description: str | None) -> Arguments:
    try:
        try:
            return tyro.cli(arguments, description=description and inspect.cleandoc(description))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # such as `--help | head` leaves behind, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain as it flushes once more
        _leave(1)
    except ValidationError as error:  # of nested settings, which tyro lets through
        configure_logging()
        for fault in error.errors():
            name = ".".join(str(part).replace("_", "-") for part in fault["loc"])
            logger.error("--%s %s: %s", name, fault["input"], fault["msg"])
        _leave(UsageError.exit_code)


def preset_command_line(
    arguments: type[PresetArguments], defaults: Callable[[Experiment], Mapping[str, object]] = lambda _: {}
) -> type[PresetArguments]:
    """Return the type that tyro parses: a preset as a subcommand, whose settings are the flags' defaults.

    arguments: a settings model with the fields `preset`, a name, and `experiment`.  defaults: of other fields, for a
    preset's experiment. What has no default is required.
    """
    constructed: dict[str, PresetArguments] = {}
    for name, preset in PRESETS.items():
        fields: dict[str, Any] = {"experiment": preset(), "preset": name, **defaults(preset())}
        # Not checked before tyro has made it whole.
        constructed[name] = cast(PresetArguments, arguments.model_construct(**fields))
    commands: type[PresetArguments] = tyro.extras.subcommand_type_from_defaults(
        constructed, {name: (preset.__doc__ or "").strip().removeprefix("Return ") for name, preset in PRESETS.items()}
    )
    return commands


def _print_result(result: Mapping[str, object], stdout: int) -> None:
    # NaN and infinity are no JSON: a result that holds them is a failure, not something to print.
    line = json.dumps(dict(result), allow_nan=False)
    sys.stderr.flush()
    with os.fdopen(stdout, "w", encoding="utf-8") as stream:
        stream.write(f"{line}\n")


def _move_stdout_to_stderr() -> int:
    """Point file descriptor 1 at stderr, for good, and return a descriptor of the real stdout.

    Done below Python, so that it holds for C++ code and child processes too.
    """
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return real


def _leave(exit_code: int) -> NoReturn:
    sys.stderr.flush()
    sys.exit(exit_code)
