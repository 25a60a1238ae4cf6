"""Check within a second that a Ray cluster answers at an address and accepts the local token.

Ray itself tries for half a minute to several minutes, and then reports the same timeout for a port where
nothing listens, a port that is not Ray's, and a cluster that requires a token. The token is looked up by
Ray's rules (docs.ray.io, "Token authentication"): it is sent to an explicit address only if
RAY_AUTH_MODE=token.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import NamedTuple

from uhr.base.errors import UserError

CLIENT = "ray://"
SECONDS = 10.0
"""Longest time until a port answers."""

_HEAD_CALL, _CLIENT_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.RayletDriver/ClusterInfo"
"""A gRPC call that a cluster's head answers, and one that its server for Ray's client (ray://) answers."""

_TOKEN_ERRORS = ("InvalidAuthToken", "Unauthenticated", "UNAUTHENTICATED", "authentication token")
"""Parts of Ray's messages for a missing or wrong token."""


class _Token(NamedTuple):
    """A token (None if it is missing), and the variable or file where it is or should be."""

    text: str | None
    place: str


def check_cluster(address: str) -> None:
    """Raise UserError unless a Ray cluster answers at HOST:PORT or ray://HOST:PORT and accepts the token, or
    uses none like this process.

    Other addresses ("auto") and clusters with TLS are not checked.
    """
    place = address.removeprefix(CLIENT)
    host, colon, port = place.rpartition(":")
    if not (host and colon and port.isdecimal()):
        return
    token = _token()
    if token is not None and token.text is None:
        raise token_error(address)
    if token is not None and token.text is not None and not _fits_header(token.text):
        raise UserError(f"the token of {token.place} has characters that no token has", "copy it again")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise no_cluster(address, f"nothing answers there: {_reason(error)}") from None
    # grpcio comes with Ray's client and dashboard, not with Ray alone
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or importlib.util.find_spec("grpc") is None:
        return
    text = None if token is None else token.text
    mine, other = (_CLIENT_CALL, _HEAD_CALL) if address.startswith(CLIENT) else (_HEAD_CALL, _CLIENT_CALL)
    status = _status(place, mine, text)
    if status == "UNAUTHENTICATED":
        raise token_error(address)
    if status == "UNIMPLEMENTED" and _status(place, other, text) != "UNIMPLEMENTED":
        is_client = other == _CLIENT_CALL
        what = "for Ray's client" if is_client else "of a cluster's head, not for Ray's client"
        raise UserError(f"{place} is a port {what}", f"--address {CLIENT if is_client else ''}{place}")
    if status in ("UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"):
        raise no_cluster(address, "the service there does not answer as Ray does")
    if text and mine == _HEAD_CALL and _status(place, mine, None) == "OK":
        # what it asks of this process without a token would be refused, and so no actor would start
        raise UserError(
            f"RAY_AUTH_MODE=token, and the Ray cluster at '{address}' uses no token",
            "unset RAY_AUTH_MODE, or start the cluster with it",
        )


def is_token_error(words: str) -> bool:
    """Whether this is Ray's message for a missing or wrong token."""
    return any(each in words for each in _TOKEN_ERRORS)


def token_error(address: str) -> UserError:
    """Return the error for a cluster that rejects the token, or requires one and receives none."""
    where = "the cluster's token is in ~/.ray/auth_token on its head, or `ray get-auth-token` prints it there"
    token = _token()
    if token is None:
        return UserError(
            f"the Ray cluster at '{address}' requires a token, which is sent only with RAY_AUTH_MODE=token",
            f"set that, and RAY_AUTH_TOKEN; {where}",
        )
    if token.text is None:
        what = f"RAY_AUTH_MODE=token, and {token.place} has no token for the Ray cluster at '{address}'"
        return UserError(what, f"set RAY_AUTH_TOKEN; {where}")
    return UserError(f"the Ray cluster at '{address}' rejects the token of {token.place}", where)


def no_cluster(address: str, why: str) -> UserError:
    """Return the error for an address without a cluster."""
    return UserError(f"no Ray cluster at '{address}' ({why})", "start one, or leave --address out")


def _token() -> _Token | None:
    """Return the token that Ray would send; None if it sends none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _Token(text, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        text = ""
    return _Token(text or None, str(file))


def _status(place: str, call: str, token: str | None) -> str:
    """Make a gRPC call without arguments, and return the name of its status."""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            # the raised object is also the call, which has the status
            return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
    return "OK"


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
