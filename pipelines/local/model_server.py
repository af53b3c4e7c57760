"""An endpoint's own server process: `code/inference.py` of a model archive, behind /ping and /invocations.

A plain script: it shares nothing with the service but its command line, so that it could serve the same archive
anywhere.

    python -P model_server.py --archive model.tar.gz --directory DIR --ready FILE

The archive is unpacked into DIR, `DIR/code` is put on sys.path, and `inference.model_fn(DIR)` is called once. Then the
port is written to FILE and requests go through `input_fn(body, content_type)`, `predict_fn(data, model)` and
`output_fn(prediction, accept)`, which returns (body, content type). `inference.BadRequest`, if there is one, is the
client's mistake: its `status` and message are the answer. Anything else is a 500 with its traceback in the log only.
"""

import argparse
import importlib
import json
import os
import socket
import sys
import tarfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

LARGEST_BODY = 6 * 1024 * 1024  # bytes: InvokeEndpoint's limit


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a model archive; members that would land outside are refused (tarfile's data filter)."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")


def load(directory: Path) -> ModuleType:
    """Import `code/inference.py`, the archive's own and no other module of that name."""
    code = directory / "code"
    if not (code / "inference.py").is_file():
        raise SystemExit("error: the model archive has no code/inference.py")
    sys.path.insert(0, str(code))
    inference = importlib.import_module("inference")
    missing = [name for name in ("model_fn", "input_fn", "predict_fn", "output_fn") if not hasattr(inference, name)]
    if missing:
        raise SystemExit(f"error: code/inference.py has no {', '.join(missing)}")
    return inference


def application(inference: ModuleType, model: Any, workers: int) -> Any:
    """The ASGI application: GET /ping and POST /invocations."""
    import asyncio

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    bad_request = getattr(inference, "BadRequest", ())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")

    def refusal(status: int, message: str) -> Response:
        return Response(json.dumps({"error": message}), status, media_type="application/json")

    def answer(body: bytes, content_type: str, accept: str) -> Response:
        try:
            prediction = inference.predict_fn(inference.input_fn(body, content_type), model)
            content, kind = inference.output_fn(prediction, accept)
        except bad_request as error:
            return refusal(int(getattr(error, "status", 400)), str(getattr(error, "message", error)))
        except Exception:
            traceback.print_exc()
            return refusal(500, "the model failed on this request; its log says why")
        return Response(content, media_type=kind)

    async def ping(_: Request) -> Response:
        return Response()

    async def invocations(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                return refusal(413, f"the request is larger than {LARGEST_BODY} bytes")
        content_type = request.headers.get("content-type", "application/octet-stream")
        accept = request.headers.get("accept", "*/*")
        return await asyncio.get_running_loop().run_in_executor(pool, answer, bytes(body), content_type, accept)

    return Starlette(
        routes=[Route("/ping", ping, methods=["GET"]), Route("/invocations", invocations, methods=["POST"])]
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="model.tar.gz")
    parser.add_argument("--directory", type=Path, required=True, help="where it is unpacked")
    parser.add_argument("--ready", type=Path, required=True, help="file that gets the port, once the model is loaded")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="requests predicted at the same time")
    options = parser.parse_args()

    import uvicorn

    unpack(options.archive, options.directory)
    inference = load(options.directory)
    model = inference.model_fn(str(options.directory))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        ready = options.ready.with_suffix(".part")
        ready.write_text(str(listener.getsockname()[1]))
        ready.replace(options.ready)
        config = uvicorn.Config(
            application(inference, model, options.workers),
            http="h11",
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=60,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
