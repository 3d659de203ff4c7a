"""MLflow's client as it is wanted here: it gives up soon, and what it raises is told without secrets."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import requests

from wmtp_jax.config import Environment
from wmtp_jax.errors import Failure, UserError


def describe(error: BaseException) -> str:
    """What a failure may be called where others read it: its type and HTTP status.

    Never the message, which could repeat an address with a password in it, but for errors of ours.
    """
    if isinstance(error, (Failure, UserError)):
        return str(error)
    cause, status = _cause(error), http_status(error)
    name = type(cause).__name__
    if status:
        return f"{name}, HTTP status {status}"
    number = getattr(cause, "errno", None)
    return f"{name}: {os.strerror(number)}" if isinstance(number, int) else name


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a server, or an artifact store, answered with; None where it did not answer."""
    cause = _cause(error)
    response = getattr(cause, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if response is not None:  # requests
        return response.status_code
    if isinstance(cause, requests.exceptions.RetryError):  # urllib3 has taken the answer; it keeps the number in words
        words = re.search(r"too many (\d{3}) error responses", str(cause))
        return int(words[1]) if words else None
    return cause.get_http_status_code() if hasattr(cause, "get_http_status_code") else None


def _cause(error: BaseException) -> BaseException:
    """The first error below MLflow's own, which wraps all others and calls them status 500."""
    from mlflow.exceptions import MlflowException

    found: BaseException | None = error
    while isinstance(found, MlflowException):
        found = found.__cause__ or found.__context__
    return found or error


def make_client(uri: str) -> Any:
    """MLflow's client, and its libraries quiet: they would print addresses, and what they raise is told elsewhere."""
    import mlflow

    for name in ("alembic", "mlflow", "urllib3", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow.MlflowClient(tracking_uri=uri)


def prepare(environment: Environment) -> None:
    """Gives MLflow and boto3 the credentials, and has them say soon that something does not work."""
    import boto3
    import botocore.session
    from botocore.config import Config

    quick = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        # What is tried again is ours to say: a request that makes a run must not be sent twice.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "ALEMBIC_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password that may be in it
    }
    for name, value in {**environment.exported(), **quick}.items():
        os.environ.setdefault(name, value)
    # An upload runs in threads that Python waits for at its end.
    session = botocore.session.get_session()
    session.set_default_client_config(Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1}))
    boto3.setup_default_session(botocore_session=session)
