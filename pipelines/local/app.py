"""What the service answers to: one address for SageMaker, its runtime, S3, STS and CloudWatch Logs.

boto3 is given this address as `endpoint_url` for all of them; the request itself says which one is meant. Whatever a
request asks for may run code on this machine, so only this machine may ask: the listener is on loopback, and a web
page that a browser here has open is turned away by its Host and Origin headers.
"""

import json
import logging
import os
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.local import container, control, s3
from pipelines.local.errors import ServiceError
from pipelines.local.hosting import Hosting
from pipelines.local.machine import Machine
from pipelines.local.model_server import LARGEST_BODY
from pipelines.local.names import ACCOUNT

log = logging.getLogger(__name__)

HEALTH = "/-/health"
_METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]
_LARGEST_REQUEST = 16 << 20  # bytes of a JSON request; the largest the API allows is a 1 MB definition
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
_JSON = "application/x-amz-json-1.1"


def build(machine: Machine, on_start: Callable[[], None], on_stop: Callable[[], None]) -> Starlette:
    """The ASGI application on an opened machine.

    Args:
        machine: what it works on.
        on_start: called once it is about to answer.
        on_stop: called when it has stopped answering.
    """
    service = control.Service(machine, Hosting(machine))

    async def answer(request: Request) -> Response:
        response = _refuse_strangers(request) or await _route(request, service)
        if response.status_code >= 400 and request.method in ("PUT", "POST"):
            # The body may not have been read, or (after Expect: 100-continue) not even sent: nothing that follows on
            # this connection could be told from it.
            response.headers["Connection"] = "close"
        return response

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.hosting.restore()
        on_start()
        try:
            yield
        finally:
            await run_in_threadpool(_shut_down, service)
            on_stop()

    return Starlette(routes=[Route("/{path:path}", answer, methods=_METHODS)], lifespan=lifespan)


def _shut_down(service: control.Service) -> None:
    service.machine.stop_all(timeout=15.0)
    service.hosting.close()
    container.clear(service.machine.store)  # what did not stop in time
    service.machine.close()


def _refuse_strangers(request: Request) -> Response | None:
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    origin = request.headers.get("origin")
    if name.lower() not in _LOCAL_HOSTS:
        what = f"Host {host!r}"
    elif origin is not None and urllib.parse.urlsplit(origin).netloc != host:
        what = f"Origin {origin!r}"
    else:
        return None
    return JSONResponse({"__type": "AccessDeniedException", "message": f"{what} is not this machine"}, 403)


async def _route(request: Request, service: control.Service) -> Response:
    target = request.headers.get("x-amz-target", "")
    path = request.url.path
    if path == HEALTH:
        return JSONResponse({"service": "sagemaker-local", "pid": os.getpid(), "state": str(service.machine.state)})
    if target:
        return await _json_call(request, service, target)
    if request.method == "POST" and path == "/":
        return await _query_call(request)
    if path.startswith("/endpoints/"):
        return await _invoke(request, service, path)
    try:
        return await s3.handle(request, service.machine.objects)
    except ServiceError as error:
        return s3.failure(error, request)
    except OSError as error:
        log.exception("s3: %s %s", request.method, path)
        return s3.failure(ServiceError("InternalError", str(error), 500), request)


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise ServiceError("ValidationException", f"The request is larger than {most} bytes", 413)
    return bytes(body)


async def _json_call(request: Request, service: control.Service, target: str) -> Response:
    """SageMaker's and CloudWatch Logs' protocol: POST / with the operation in X-Amz-Target and a JSON body."""
    family, _, operation = target.partition(".")
    try:
        body = await _body(request, _LARGEST_REQUEST)
        try:
            content = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise ServiceError("SerializationException", f"The request is not JSON: {error}") from None
        if family == "SageMaker":
            document = await run_in_threadpool(control.call, service, operation, content)
        elif family == "Logs_20140328" and isinstance(content, dict):
            document = await run_in_threadpool(service.machine.logs.call, operation, content)
        else:
            raise ServiceError("UnknownOperationException", f"{target} is not supported by SageMaker on this machine")
    except ServiceError as error:
        return Response(_error(error.code, error.message), error.status, media_type=_JSON)
    except Exception as error:
        log.exception("%s", target)
        return Response(_error("InternalFailure", f"{error!r}; see service.log"), 500, media_type=_JSON)
    return Response(json.dumps(document), media_type=_JSON)


def _error(code: str, message: str) -> str:
    return json.dumps({"__type": code, "message": message})


async def _query_call(request: Request) -> Response:
    """STS: a form with the operation in Action, answered in XML."""
    form = urllib.parse.parse_qs((await _body(request, 1 << 20)).decode(errors="replace"))
    action = form.get("Action", [""])[0]
    namespace = "https://sts.amazonaws.com/doc/2011-06-15/"
    if action == "GetCallerIdentity":
        arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/local/sagemaker"
        result = f"<Arn>{arn}</Arn><UserId>LOCAL:sagemaker</UserId><Account>{ACCOUNT}</Account>"
        content = f"<{action}Result>{result}</{action}Result>"
        body = f'<{action}Response xmlns="{namespace}">{content}</{action}Response>'
        return Response(body, media_type="text/xml")
    message = f"{action!r} is not supported by SageMaker on this machine".replace("<", "").replace("&", "")
    error = f"<Error><Type>Sender</Type><Code>InvalidAction</Code><Message>{message}</Message></Error>"
    return Response(f'<ErrorResponse xmlns="{namespace}">{error}</ErrorResponse>', 400, media_type="text/xml")


async def _invoke(request: Request, service: control.Service, path: str) -> Response:
    """The runtime: POST /endpoints/NAME/invocations."""
    parts = path.split("/")
    try:
        if request.method != "POST" or len(parts) != 4 or parts[3] != "invocations":
            raise ServiceError(
                "UnknownOperationException", f"{request.method} {path} is not supported on this machine", 404
            )
        body = await _body(request, LARGEST_BODY)
        headers = dict(request.headers)
        target = headers.get("x-amzn-sagemaker-target-variant")
        answer = await run_in_threadpool(service.hosting.invoke, parts[2], body, headers, target)
    except ServiceError as error:
        # A ModelError's message is a document of its own; the others have only a message.
        content = error.message if error.code == "ModelError" else json.dumps({"Message": error.message})
        code = {"x-amzn-ErrorType": error.code}
        return Response(content, error.status, code, media_type="application/json")
    except Exception as error:
        log.exception("%s", path)
        return JSONResponse({"Message": repr(error)}, 500, {"x-amzn-ErrorType": "InternalFailure"})
    passed = {"x-Amzn-Invoked-Production-Variant": answer.variant}
    if "x-amzn-sagemaker-custom-attributes" in answer.headers:
        passed["X-Amzn-SageMaker-Custom-Attributes"] = answer.headers["x-amzn-sagemaker-custom-attributes"]
    kind = answer.headers.get("content-type", "application/octet-stream")
    return Response(answer.body, headers={**passed, "Content-Type": kind})
