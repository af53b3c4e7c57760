"""The handlers of inference.py as a Ray Serve application, which is what AWS' serving image runs (config.yaml).

The image puts this folder on the path and forwards a request's body and headers to the application's route `/`.
"""

import asyncio
import json
import os
from pathlib import Path

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

import inference

MODEL_DIR = Path(__file__).resolve().parent.parent


@serve.deployment(num_replicas=os.cpu_count() or 1, ray_actor_options={"num_cpus": 1})
class Classifier:
    """One replica a core, one thread each."""

    def __init__(self) -> None:
        self.model = inference.model_fn(str(MODEL_DIR))

    async def __call__(self, request: Request) -> Response:
        """Answer one request, outside the event loop, which has to go on answering health checks."""
        headers = request.headers
        return await asyncio.to_thread(
            self.answer, await request.body(), headers.get("content-type"), headers.get("accept")
        )

    def answer(self, body: bytes, content_type: str | None, accept: str | None) -> Response:
        """The handlers, one after the other; a client's mistake becomes its status and a reason."""
        try:
            prediction = inference.predict_fn(inference.input_fn(body, content_type), self.model)
            text, kind = inference.output_fn(prediction, accept)
        except inference.BadRequest as error:
            return Response(json.dumps({"error": str(error)}), error.status, media_type=inference.JSON_TYPE)
        return Response(text, media_type=kind)


app = Classifier.bind()  # type: ignore[attr-defined] # the decorator's, and ray has no types here
