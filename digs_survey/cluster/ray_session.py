"""A Ray session for the stages that spread their work: a cluster's by address, or this machine's cores."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module

from digs_survey.cluster.cores import usable_cores
from digs_survey.cluster.dashboards import dashboards_wanted, tell_dashboard
from digs_survey.cluster.ray_token import private_token, token_hint
from digs_survey.cluster.worker_wait import wait_for_room
from digs_survey.errors import MissingDependencyError

__all__ = ["probe_ray", "ray_session"]

_OBJECT_STORE_BYTES = 200 * 2**20
"""Workers read and write files themselves; only small messages pass through Ray's memory."""
_LOOPBACK = "127.0.0.1"
_PROBE_TIMEOUT_S = 10.0
"""Ray itself retries a dead address for minutes."""
_NODE_TIMEOUT_S = 10
"""A node of this machine that is starting has registered by then."""
_CLIENT_PORT = 10001
"""Of a head that was not given another."""


@contextmanager
def ray_session(address: str | None = None) -> Iterator[int]:
    """Connect to Ray, and leave it as it was found.

    Parameters
    ----------
    address : str, optional
        A running cluster: as ``host:port`` or ``auto`` on a machine that is one of its nodes, as ``ray://host:port``
        (the head's client port, 10001 by default) from any other. Without it, or with ``local`` as in
        Ray's own ``RAY_ADDRESS``, Ray starts on the cores that this process may use, listens on the loopback interface
        alone and stops at the end. A session that is open already is used and left open.

    Yields
    ------
    int
        Cores of the cluster, at least 1.

    Raises
    ------
    MissingDependencyError
        No cluster that lets us in answers at ``address``, no worker joins it in time, or Ray cannot start on this
        machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            if address in (None, "local"):
                stack.enter_context(private_token())
                _start()
            else:
                _connect(str(address))
            stack.callback(ray.shutdown)
        if not ray.cluster_resources().get("CPU"):
            wait_for_room([{"CPU": 1}], "Ray" if address is None else f"Ray at {address}")
        yield max(1, int(ray.cluster_resources().get("CPU", 0)))


def _start() -> None:
    import ray

    watched, cores = dashboards_wanted(), usable_cores()
    try:
        with _loopback_only():
            # "local" and not None: None would join whatever cluster RAY_ADDRESS or an earlier `ray start` left.
            context = ray.init(
                address="local",
                num_cpus=cores,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=watched,
                dashboard_host=_LOOPBACK,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    # Ray raises a bare Exception where its own processes do not come up in time.
    except Exception as error:
        ray.shutdown()
        raise MissingDependencyError(
            f"Ray: expected to start on this machine's cores, found {type(error).__name__}: {error}; {_remedy(error)}"
        ) from error
    if watched:
        _tell(context.dashboard_url)
        (node,) = ray.nodes()
        tell_dashboard("Ray metrics for Prometheus", f"http://{_LOOPBACK}:{node['MetricsExportPort']}/metrics")


def _remedy(error: Exception) -> str:
    """Say what helps where Ray does not start on this machine."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if "AF_UNIX" in str(error):
        return f"the path of its sockets, below {folder}, is too long: set RAY_TMPDIR to a short folder, such as /tmp"
    if sys.flags.optimize > 1:
        return "its processes do not start with python -OO: leave PYTHONOPTIMIZE unset"
    return (
        f"its processes tell why in {folder}/ray/session_latest/logs. It needs a writable home folder and {folder}, "
        "free memory, and processes that start within some 30 s; `digs-survey doctor` checks it"
    )


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Keep the servers of a session that starts inside off the network.

    Whoever reaches Ray's ports can run code, and Ray opens them on all interfaces, whatever node address it is
    given. On systems where it supports no clusters it keeps to the loopback interface; this makes it take the
    present one for such a system (the switch is Ray's own, and a test looks at the ports).
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _tell(url: str | None) -> None:
    """Say where Ray's dashboard is (Ray leaves the scheme away), and where the token is that it may ask for."""
    tell_dashboard("Ray dashboard", url and (url if "://" in url else f"http://{url}"), token_hint())


def _connect(address: str) -> None:
    import ray

    remedy = "start the cluster, correct the address, or leave it away to use this machine's cores"
    if os.environ.get("RAY_ADDRESS") == address:
        remedy = "it comes from RAY_ADDRESS in the environment: start the cluster, or unset RAY_ADDRESS"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            raise MissingDependencyError(f"Ray cluster {address!r}: expected host:port or ray://host:port; {remedy}")
        limit = _PROBE_TIMEOUT_S
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=limit).close()
        except (OSError, OverflowError) as error:
            raise MissingDependencyError(
                f"Ray cluster {address}: expected an answer within {limit:g} s, found {error}; {remedy}"
            ) from error
        if not address.startswith("ray://"):
            _check_node(address, host, remedy)
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # As at a start, Ray raises a bare Exception among others.
    except Exception as error:
        raise _not_let_in(address, error, remedy) from error
    _tell(context.dashboard_url)


def _check_node(address: str, host: str, remedy: str) -> None:
    """Refuse an address on a machine that runs no node of that cluster: Ray itself would look for one for a minute."""
    from ray._private import services
    from ray.exceptions import AuthenticationError, RpcError

    try:
        cluster = import_module("ray._raylet").GcsClient(address=services.canonicalize_bootstrap_address(address))
    except AuthenticationError as error:
        raise _not_let_in(address, error, remedy) from error
    except RpcError as error:
        raise MissingDependencyError(
            f"Ray cluster {address}: expected the port of its head (ray start --port), found {error}; {remedy}. If "
            f"this is its client port, give it as ray://{address}"
        ) from error
    try:
        services.get_node_to_connect_for_driver(cluster, timeout_seconds=_NODE_TIMEOUT_S)
    except RuntimeError as error:
        raise MissingDependencyError(
            f"Ray cluster {address}: expected one of its nodes on this machine, found none within "
            f"{_NODE_TIMEOUT_S} s; from any other machine give the head's client port, as "
            f"--ray-address ray://{host}:{_CLIENT_PORT} (unless ray start had another --ray-client-server-port)"
        ) from error


def _not_let_in(address: str, error: Exception, remedy: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"Ray cluster {address}: expected to be let in, found {type(error).__name__}: {error}; {remedy}. "
        "The cluster must run the same versions of Ray and Python; where it asks for a token, set "
        "RAY_AUTH_MODE=token and give its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )


def probe_ray(address: str | None = None) -> str:
    """Start or reach Ray, run one task there, and say what was found."""
    with ray_session(address) as cores:
        import ray

        answer = ray.get(ray.remote(lambda: os.getpid()).remote())
        where = "started on this machine" if address in (None, "local") else f"reached at {address}"
        return f"{where}: {cores} cores, a task ran in process {answer}"
