"""What schemathesis is told beside the served description: who calls, what a recording is, and checks of our own."""

import atexit
import itertools
import os
import re
import sys
import threading

import requests
import schemathesis
from hypothesis import strategies
from schemathesis.specs.openapi.checks import is_unexpected_http_status_case as is_probe

GATEWAY = os.environ["GATEWAY_URL"]
WITH_TOKEN = "WITH_TOKEN" in os.environ
PASSWORD = "Abcdef12"

# Whoever calls these is not logged in any more.
LAST_CALLS = {"v01_auth_logout", "v01_auth_delete", "v01_auth_password_change"}
# What only a user knows: it stands in every other well-formed request, in the body or the path, so that some are accepted.
KNOWN = {
    "v01_auth_login": lambda: {"username": register()["user"]["username"], "password": PASSWORD, "tenant_id": None},
    "v01_auth_refresh": lambda: {"refresh_token": register()["refresh_token"]},
    "v01_auth_delete": lambda: {"password": PASSWORD},
    "v01_auth_password_change": lambda: {"old_password": PASSWORD},
    "v01_sessions_messages": lambda: {"id": session()},
    "v01_chat_stream": lambda: {"session_id": session()},
    "v01_post_documents": lambda: {"title": "Notes", "tags": []},
    "gateway_openapi_2": lambda: {"document": "v01.json"},
}

# Behind their handshake a connection speaks no HTTP any more.
SOCKETS = {"v2_get_voice_stream", "v2_get_voice_ws", "v2_get_webrtc_signaling", "v2_get_notifications"}

# Why a well-formed request may be refused, by operation and code: no schema can say it. `*` is for all of them. An operation
# that is not named takes every well-formed request.
TAKEN = "somebody or something is called so already"
UNKNOWN = "nothing is called so"
BYTES = "72 bytes at most, and schemas count characters"
CREDENTIALS = "nobody has this name with this password"
PAGES = "a cursor is what some page gave"
LINE = "a title is one line"
SERVICE = "the service's own rules, for which its protobuf has no words"
EXPLAINED = {
    "*": {"invalid_path": "no path of the gateway's holds a control character or an encoded slash"},
    "gateway_openapi_2": {"not_found": UNKNOWN},
    "v01_auth_register": {"account_exists": TAKEN, "password_too_long": BYTES},
    "v01_auth_login": {
        "invalid_credentials": CREDENTIALS,
        "account_locked": "guessed too often",
        "password_too_long": BYTES,
    },
    "v01_auth_refresh": {"invalid_refresh_token": UNKNOWN},
    "v01_auth_delete": {
        "required": "who has a password must give it",
        "invalid_credentials": CREDENTIALS,
        "password_too_long": BYTES,
    },
    "v01_auth_password_change": {"invalid_credentials": CREDENTIALS, "password_too_long": BYTES},
    "v01_auth_password_reset": {"link_invalid": UNKNOWN, "password_too_long": BYTES},
    "v01_auth_wechat_login": {"invalid_wechat_code": UNKNOWN, "permission_denied": "not every tenant takes new users"},
    "v01_sessions_create": {"idempotency_key_reused": TAKEN, "control_character": LINE},
    "v01_sessions_list": {"cursor": PAGES},
    "v01_sessions_get": {"not_found": UNKNOWN},
    "v01_sessions_update": {"not_found": UNKNOWN, "control_character": LINE},
    "v01_sessions_delete": {"not_found": UNKNOWN},
    "v01_sessions_messages": {"not_found": UNKNOWN, "cursor": PAGES},
    "v01_chat_stream": {
        "not_found": UNKNOWN,
        "stream_gone": "there is no stream to go on with",
        "idempotency_key_reused": TAKEN,
    },
    "v01_chat_cancel": {"not_found": UNKNOWN, "not_running": "nothing is being written"},
    "v01_post_documents": {"invalid": SERVICE},
    "v01_get_documents": {"invalid": SERVICE},
    "v01_get_documents_watch": {"invalid": SERVICE},
    "v01_post_documents_upload": {"invalid": SERVICE, "type": "base64 has whole groups of digits"},
    "v01_get_documents_id": {"not_found": UNKNOWN},
    "v01_patch_documents_id": {"not_found": UNKNOWN, "invalid": SERVICE, "revision_changed": "it has another revision"},
    "v01_delete_documents_id": {"not_found": UNKNOWN},
    "v2_post_chat_cancel": {"not_found": UNKNOWN},
    "v2_get_chat_sessions_id": {"not_found": UNKNOWN},
    "v2_post_query": {"invalid": "15.0 is a whole number for schemas, not for the service"},
}
# What no request can reach here.
NEVER_ACCEPTED = {
    "v01_auth_password_reset": "a link comes by mail",
    "v01_chat_cancel": "no answer is being written between two requests",
    "v2_post_chat_cancel": "the same",
    "v2_get_chat_sessions_id": "the same",
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Leaves `default` out: it stands for what any request may meet, and would let every status pass."""
    for item in raw_schema.get("paths", {}).values():
        for operation in item.values():
            operation.get("responses", {}).pop("default", None)


# Half a second of silence at 8 kHz, 8 bits each.
SILENCE = (
    b"RIFF\xc4\x0f\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\xa0\x0f\0\0" + b"\x80" * 4000
)
OTHERS = ["audio/mpeg", "audio/webm", "video/webm", "video/mp4"]
schemathesis.openapi.media_type("audio/wav", strategies.just(SILENCE), aliases=OTHERS)

numbers = itertools.count()
one_at_a_time = threading.Lock()
tried, accepted = set(), set()


def operation_id(case):
    return case.operation.definition.raw.get("operationId")


def is_well_formed(case):
    return case.meta is not None and case.meta.generation.mode.is_positive and not is_probe(case)


def register():
    """A new user, as it is told of itself."""
    with one_at_a_time:
        name = f"user_{os.getpid()}_{next(numbers)}"
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    response = requests.post(f"{GATEWAY}/api/v01/auth/register", json=body, timeout=60)
    response.raise_for_status()
    return response.json()


def hang_up(response, *_, **__):
    if response.status_code == 101:
        response.raw.close()


def session():
    """A new session of the caller's."""
    headers = {"Authorization": f"Bearer {Caller.user['access_token']}"}
    response = requests.post(f"{GATEWAY}/api/v01/sessions", headers=headers, timeout=60)
    response.raise_for_status()
    return response.json()["session_id"]


if WITH_TOKEN:

    @schemathesis.auth(refresh_interval=None)
    class Caller:
        """One user makes all calls, but for those that end its login: each of these has a user of its own."""

        user = None

        def get(self, case, context):
            if operation_id(case) in LAST_CALLS:
                return register()
            if Caller.user is None:
                Caller.user = register()
            return Caller.user

        def set(self, case, data, context):
            case.headers["Authorization"] = f"Bearer {data['access_token']}"

    filled = dict.fromkeys(KNOWN, 0)

    @schemathesis.hook
    def before_call(context, case, kwargs):
        """Fills in what only a user knows, and sees to it that no request follows on a socket's connection."""
        name = operation_id(case)
        if name in SOCKETS:
            kwargs["hooks"] = {"response": hang_up}
        if name not in KNOWN or not is_well_formed(case):
            return
        filled[name] += 1
        place = case.path_parameters or case.body
        if filled[name] % 2 and isinstance(place, dict):
            place.update(KNOWN[name]())

    @schemathesis.hook
    def after_call(context, case, response):
        tried.add(operation_id(case))
        if is_well_formed(case) and response.status_code < 400:
            accepted.add(operation_id(case))

    @atexit.register
    def report():
        """Says which operations never took a request: of their answers nothing was tried but refusals."""
        never = sorted(tried - accepted - NEVER_ACCEPTED.keys())
        if never:
            print(f"\nNo request was accepted by: {', '.join(never)}", file=sys.stderr)
            open(os.environ["NEVER_ACCEPTED"], "w").close()


@schemathesis.check
def refusals_are_explained(ctx, response, case):
    """A request that fits the description is refused for reasons only that a description cannot say."""
    if not is_well_formed(case) or response.status_code < 400:
        return
    if response.status_code == 401 and not WITH_TOKEN and case.operation.definition.raw.get("security"):
        return
    refusal = response.json()
    codes = {fault["code"] for fault in refusal.get("errors", [])} or {refusal["code"]}
    name = operation_id(case)
    unexplained = codes - EXPLAINED.get(name, {}).keys() - EXPLAINED["*"].keys()
    assert not unexplained, f"{name} refuses what fits its description: {', '.join(sorted(unexplained))}"


@schemathesis.check
def allow_names_what_is_routed(ctx, response, case):
    """`Allow` names what is described for the path, and what else is described for more general ones: a route for
    `/documents/upload` does not keep a document called `upload` from being read by `/documents/{id}`."""
    allow = response.headers.get("allow")
    if response.request.method != "OPTIONS" or not allow:
        return
    named = {method.strip() for value in allow for method in value.split(",")} - {"HEAD", "OPTIONS"}
    paths = case.operation.schema.raw_schema["paths"]
    path = case.operation.path
    own = {method.upper() for method in paths[path]}
    matching = (item for template, item in paths.items() if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path))
    routed = {method.upper() for item in matching for method in item}
    assert own <= named <= own | routed, f"Allow names {sorted(named)}, described are {sorted(own)}"
