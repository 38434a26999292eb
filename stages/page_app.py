"""The server of the page: its files, what it offers, and generations as streams of JSON lines.

Shapes: B images, H W an image in pixels.
"""

import asyncio
import base64
import io
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from mar.sampling.blank import count_blank
from mar.sampling.config import SampleConfig
from stages.conditions import Given
from stages.page_form import describe, read_edit, read_given, read_request
from stages.sampler import Edit, Progress, Sampler


FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
SHOWN = 16  # pictures along the way, at most
# The browser asks nobody else for anything, whatever the page said.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data: blob:"
)
LOOPBACK = ["localhost", "127.0.0.1"]

Send = Callable[[dict[str, Any]], None]


class _StoppedError(Exception):
    """Nobody waits for the generation any more."""


@dataclass
class Job:
    """A generation that a page asked for.

    Attributes:
        given: What each image is of.
        config: How to sample.
        edit: Images to draw a part of again, or None.
        on_the_way: Whether pictures along the way are sent.
        stopped: Is set when nobody waits for it any more.
    """

    given: Given
    config: SampleConfig
    edit: Edit | None
    on_the_way: bool
    stopped: threading.Event = field(default_factory=threading.Event)


class Generations:
    """Runs one generation at a time, and tells each page what comes of its own."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._busy = threading.Lock()

    def read(self, content: object) -> Job:
        """Return the job that a page asks for.

        Raises:
            ValueError: it asks for what there is not.
        """
        asked = read_request(content)
        config = self.sampler.settings(
            source="page",
            seed=asked.seed,
            guidance_scale=asked.guidance_scale,
            num_steps=asked.num_steps,
            reconstruction_steps=asked.reconstruction_steps,
            head=asked.head,
        )
        given = read_given(self.sampler, asked)
        return Job(given, config, read_edit(self.sampler, asked), asked.on_the_way)

    async def stream(self, job: Job) -> AsyncGenerator[str]:
        """Run a job in a thread; yield a line of JSON for each thing to tell."""
        loop = asyncio.get_running_loop()
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def send(message: dict[str, Any] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(messages.put_nowait, message)

        def work() -> None:
            try:
                self._run(job, send)
            except _StoppedError:
                pass
            except Exception as error:  # whatever it is, the page shows it and goes on
                send({"error": str(error) or type(error).__name__})
            finally:
                send(None)

        threading.Thread(target=work, daemon=True).start()
        try:
            while (message := await messages.get()) is not None:
                yield json.dumps(message) + "\n"
        finally:
            job.stopped.set()

    def _run(self, job: Job, send: Send) -> None:
        while not self._busy.acquire(timeout=0.2):
            if job.stopped.is_set():
                return
        try:
            watch = _Watch(self.sampler, job, send)
            images = self.sampler.generate(
                job.given.tokens, job.config, edit=job.edit, on_step=watch.on_step
            )
            seconds = watch.seconds()
        finally:
            self._busy.release()
        warnings = [*job.given.remarks, count_blank(images).warning()]
        send({
            "warnings": [warning for warning in warnings if warning],
            "pictures": [_data_url(image) for image in images],
            "seconds": round(seconds, 3),
            "seconds_per_image": round(seconds / len(images), 3),
        })  # fmt: skip


class _Watch:
    """Sends progress and pictures along the way, and takes their time out of the generation's."""

    def __init__(self, sampler: Sampler, job: Job, send: Send) -> None:
        self._sampler = sampler
        self._job = job
        self._send = send
        self._every = math.ceil(job.config.num_steps / SHOWN)
        self._steps = 0
        self._elsewhere = 0.0
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return how long the generation itself has taken."""
        return time.monotonic() - self._started - self._elsewhere

    def on_step(self, progress: Progress) -> None:
        """Tell of a generation step, or end a generation that nobody waits for."""
        if self._job.stopped.is_set():
            raise _StoppedError
        self._steps += 1
        message: dict[str, Any] = {"images": round(progress.images, 4)}
        if self._job.on_the_way and self._steps % self._every == 0:
            if self._sampler.device.type != "cpu":  # so that its work counts as the generation's
                torch.accelerator.synchronize(self._sampler.device)
            start = time.monotonic()
            message["indices"] = list(progress.indices)
            message["pictures"] = [_data_url(image) for image in progress.picture()]
            self._elsewhere += time.monotonic() - start
        self._send(message)


def make_app(sampler: Sampler, *, only_loopback: bool) -> Starlette:
    """Return the server's application.

    Args:
        sampler: What draws.
        only_loopback: Whether it refuses requests under names of other machines, which a website
            could give to this one (DNS rebinding).
    """
    generations = Generations(sampler)
    described = describe(sampler)

    async def file(request: Request) -> Response:
        response = FileResponse(Path(__file__).with_name(FILES[request.url.path]))
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response

    async def model(_: Request) -> Response:
        return JSONResponse(described)

    async def generate(request: Request) -> Response:
        # A website's form cannot send this type without the browser asking first.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "expected application/json"}, 415)
        try:
            job = generations.read(await request.json())
        except ValueError as error:  # of JSON as well
            return JSONResponse({"error": str(error)}, 400)
        return StreamingResponse(generations.stream(job), media_type="application/x-ndjson")

    return Starlette(
        routes=[
            *(Route(path, file) for path in FILES),
            Route("/model", model),
            Route("/generate", generate, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK if only_loopback else ["*"])
        ],
    )


def _data_url(image: UInt8[Tensor, "3 H W"]) -> str:
    """Return an image as a PNG in text."""
    content = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.save(content, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
