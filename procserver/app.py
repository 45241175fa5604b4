"""The Falcon app: routes, authorization, limits, error rendering. No logic."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import falcon

from procserver.errors import (
    BadRequest,
    NotFound,
    NotReady,
    PredictFailed,
    RequestError,
    ServiceError,
)
from procserver.observe import exposition, metrics
from procserver.observe.accesslog import TRACE
from procserver.observe.capture import Capture
from procserver.observe.reqlog import Logs
from procserver.observe.trace import Trace, record
from procserver.pipeline import Pipeline, Reply
from procserver.wire.auth import Authenticator
from procserver.wire.compression import decompress
from procserver.wire.receiving import BufferPool, receive
from procserver.wire.refusal import error_body, status_line

log = logging.getLogger("procserver.app")

METHODS = ["GET", "POST"]
_REST = r"(?:/[^?]*)?"


class Admission(Protocol):
    """Who may enter and when it is their turn (requests of the whole service)."""

    def enter(self) -> AbstractContextManager[None]:
        """A request's stay.

        :raises TooManyRequests: over ``rpc.rate_limit``
        :raises QueueFull: if ``rpc.max_queue_size`` requests are waiting
        """

    def inside(self) -> int:
        """Requests inside the whole service, all that wait included."""

    def turn(self, deadline: float) -> AbstractContextManager[None]:
        """A place among those that are processed.

        :raises OutOfTime: if the deadline (monotonic clock) passes
        """


class Unlimited:
    """Everybody enters at once."""

    def enter(self) -> AbstractContextManager[None]:
        return nullcontext()

    def inside(self) -> int:
        return 0

    def turn(self, deadline: float) -> AbstractContextManager[None]:
        return nullcontext()


class Watch(Protocol):
    """Who wants to know what is being computed."""

    def computing(self, body: memoryview) -> AbstractContextManager[None]:
        """The time in which a request is computed, known by its body.

        :raises PoisonRequest: if workers have died over it
        """


class Unwatched:
    """Nobody looks."""

    def computing(self, body: memoryview) -> AbstractContextManager[None]:
        return nullcontext()


class Readiness(Protocol):
    """One reason why clients should go elsewhere, though requests are answered."""

    def __call__(self) -> str | None:
        """The reason, which clients are told; None: there is none now."""


@dataclass(frozen=True)
class Service:
    """What the app serves: one pipeline under one name.

    ``readiness`` is asked by every readiness check; ``health_path`` is a further path
    of it.
    """

    name: str
    model_version: str
    pipeline: Pipeline
    auth: Authenticator
    max_body_bytes: int
    decompressor: str | None = None
    admission: Admission = field(default_factory=Unlimited)
    watch: Watch = field(default_factory=Unwatched)
    logs: Logs | None = None
    loaded_at: float = field(default_factory=time.time)
    capture: Capture | None = None
    readiness: tuple[Readiness, ...] = ()
    health_path: str | None = None

    def answers_to(self, name: str) -> bool:
        """Whether a URL's service part means us (``group.service`` does too)."""
        return name == self.name or name.endswith(f".{self.name}")

    def why_not_ready(self) -> str | None:
        """Why new requests should not come here; None: they may."""
        reasons = (reason() for reason in self.readiness)
        return next((told for told in reasons if told is not None), None)


def create_app(service: Service) -> falcon.App[falcon.Request, falcon.Response]:
    """The WSGI application of one worker (spec/protocol.md section 1.1).

    ``wsgi.input`` must be a :class:`procserver.wire.receiving.BodySource` with a
    ``deadline``; ``arrived`` and ``waited`` say when the request came and how long no
    thread was there for it, ``client_has_left()`` whether its answer is for nobody.
    """
    app = falcon.App(media_type="application/octet-stream", middleware=[Observer()])
    predict = Predict(service)
    app.add_route("/", predict)
    app.add_route("/api/predict/{name}", predict)
    app.add_sink(predict.on_subpath, r"/api/predict/(?P<name>[^/]+)/")
    discovery = Discovery(service)
    for prefix in Discovery.PREFIXES:
        app.add_sink(discovery, rf"{prefix}/(?P<name>[^/]+){_REST}$")
    models = Models(service)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_route(path, models)
        app.add_route(f"{path}/ready", models, suffix="ready")
    app.add_route("/v2/health/live", Live())
    app.add_route("/v2/health/ready", Ready(service))
    if service.health_path is not None:
        app.add_route(service.health_path, Ready(service))
    app.add_route("/metrics", Metrics(service))
    app.add_error_handler(Exception, _on_exception)
    app.add_error_handler(RequestError, _on_request_error)
    app.set_error_serializer(_serialize_http_error)
    return app


class Predict:
    """``POST`` scores, ``GET`` describes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._buffers = BufferPool()

    def on_post(
        self, req: falcon.Request, resp: falcon.Response, name: str | None = None
    ) -> None:
        self._authorize(req, name)
        service = self._service
        source = req.env["wsgi.input"]
        limit = service.max_body_bytes
        trace = req.context.trace
        with (
            service.admission.enter(),
            receive(source, limit, self._buffers) as received,
        ):
            trace.received()
            with service.admission.turn(source.deadline):
                trace.taken_up()
                metrics.QUEUE_SECONDS.observe_ns(trace.queued)
                with service.watch.computing(received):
                    reply = self._answer(received, trace)
        resp.data = reply.body
        resp.content_type = "application/octet-stream"
        resp.set_header("X-Model-Version", service.model_version)
        if reply.generation is not None:
            resp.set_header("X-Cache-Generation", str(reply.generation))
        if reply.deltas:
            resp.set_header("X-Cache-Delta", str(reply.deltas))

    def _answer(self, received: memoryview, trace: Trace) -> Reply:
        service = self._service
        body = decompress(received, service.max_body_bytes, service.decompressor)
        try:
            reply = service.pipeline.predict(body, trace)
        finally:
            if service.logs is not None:
                service.logs.slow.check(trace, body)
        if service.capture is not None and not reply.debug_level:
            service.capture.offer(body, reply.rows)
        return reply

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, name: str | None = None
    ) -> None:
        self._authorize(req, name)
        resp.content_type = falcon.MEDIA_JSON
        resp.media = {
            "name": self._service.name,
            "signature_name": "forward",
            "model_version": self._service.model_version,
            **self._service.pipeline.describe(),
        }

    def on_subpath(
        self, req: falcon.Request, resp: falcon.Response, **path: Any
    ) -> None:
        """Clients append paths of their own to the service's URL."""
        if req.method == "POST":
            self.on_post(req, resp, path["name"])
        elif req.method == "GET":
            self.on_get(req, resp, path["name"])
        else:
            raise falcon.HTTPMethodNotAllowed(METHODS)

    def _authorize(self, req: falcon.Request, name: str | None) -> None:
        authorize(self._service, req, name)


def authorize(service: Service, req: falcon.Request, name: str | None) -> None:
    """Whether the client may ask, and us.

    :raises Unauthorized: without the token or a signature
    :raises NotFound: if ``name`` is another service's
    """
    # The signature covers the path as it was sent, percent-escapes included.
    target = req.env.get("RAW_URI") or req.relative_uri
    service.auth.check(req.method, target, req.headers)
    if name is not None and not service.answers_to(name):
        raise NotFound("there is no service of this name here")


class Models:
    """The model and its version, in the shape of the KServe v2 protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        name: str,
        version: str | None = None,
    ) -> None:
        self._find(req, name, version)
        service = self._service
        loaded = datetime.fromtimestamp(service.loaded_at, UTC)
        self._answer(
            resp,
            {
                "name": service.name,
                "versions": [service.model_version],
                **service.pipeline.describe_model(),
                "loaded_at": loaded.isoformat(timespec="seconds"),
                "last_reload": metrics.last_reload(),
                "last_refresh": metrics.last_refresh(),
            },
        )

    def on_get_ready(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        name: str,
        version: str | None = None,
    ) -> None:
        self._find(req, name, version)
        ready = _tell_readiness(resp, self._service)
        self._answer(resp, {"name": self._service.name, **ready})

    def _find(self, req: falcon.Request, name: str, version: str | None) -> None:
        authorize(self._service, req, name)
        if version not in (None, self._service.model_version):
            raise NotFound("there is no model of this version here")

    def _answer(self, resp: falcon.Response, media: dict[str, object]) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.media = media
        resp.set_header("X-Model-Version", self._service.model_version)


class Observer:
    """Times and counts predict requests, refused ones too.

    Descriptions, health checks and metrics are asked for with ``GET`` and do not
    count.
    """

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        if req.method not in ("GET", "HEAD"):
            source = req.env["wsgi.input"]
            req.context.trace = req.env[TRACE] = Trace(
                getattr(source, "arrived", None), getattr(source, "waited", 0.0)
            )
            metrics.IN_FLIGHT.add(1)

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        resource: object,
        req_succeeded: bool,
    ) -> None:
        trace = getattr(req.context, "trace", None)
        if trace is not None:
            metrics.IN_FLIGHT.add(-1)
            gone = getattr(req.env["wsgi.input"], "client_has_left", None)
            is_gone = gone is not None and gone()
            record(trace, "499" if is_gone else str(resp.status)[:3])


class Metrics:
    """All processes of the service in the Prometheus text format.

    Open like the health checks: it tells nothing about people or requests.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        metrics.INSIDE.set(self._service.admission.inside())
        resp.content_type = exposition.CONTENT_TYPE
        resp.data = exposition.render()


class Discovery:
    """Where clients find us that bypass the gateway (``DIRECT`` endpoints).

    They ask the address that they were given and then call what is answered, so
    the answer is that very address. They send no token here.
    """

    PREFIXES = (
        "/api/v1/servicediscovery/upstreams",
        "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams",
    )

    def __init__(self, service: Service) -> None:
        self._service = service

    def __call__(self, req: falcon.Request, resp: falcon.Response, **path: Any) -> None:
        if req.method != "GET":
            raise falcon.HTTPMethodNotAllowed(["GET"])
        if not self._service.answers_to(path["name"]):
            raise NotFound("there is no service of this name here")
        service = self._service.name
        # NOTE: engines written in Go expect numbers here and panic on text.
        endpoint = {**_reached_at(req), "weight": 100, "app": service, "name": service}
        resp.content_type = falcon.MEDIA_JSON
        resp.media = {"endpoints": {"items": [endpoint]}, "correlative": [service]}


def _reached_at(req: falcon.Request) -> dict[str, object]:
    """Our address as the client wrote it in ``Host``, else the socket's."""
    try:
        host, port = req.host, req.port
    except ValueError as error:
        raise BadRequest("the Host header holds no address") from error
    return {"ip": f"[{host}]" if ":" in host else host, "port": port}


class Live:
    """The process answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.media = {"live": True}


class Ready:
    """A worker that listens has loaded, joined the cache and warmed up.

    503 with the reason if clients should go elsewhere, as they should once the
    service is being stopped. With a cache that has no items it answers, but worse than
    it could: ``degraded``.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.media = _tell_readiness(resp, self._service)


def _tell_readiness(resp: falcon.Response, service: Service) -> dict[str, object]:
    reason = service.why_not_ready()
    if reason is None:
        told = {"ready": True, **_crew()}
        if metrics.cache_is_empty():
            told |= {"state": "degraded", "degraded": "the item cache is empty"}
        return told
    resp.status = falcon.HTTP_503
    return {"ready": False, "reason": reason}


def _crew() -> dict[str, object]:
    """Whether fewer workers are ready than there should be: still able to serve."""
    crew = metrics.crew()
    if crew is None:
        return {}
    ready, wanted = crew
    state = "degraded" if ready < wanted else "ready"
    return {"state": state, "workers": {"ready": ready, "wanted": wanted}}


def _render(
    resp: falcon.Response, status: int, code: str, message: str, *, close: bool
) -> None:
    resp.status = status_line(status)
    resp.content_type = "text/plain; charset=utf-8"
    resp.data = error_body(code, message)
    resp.media = None
    if close:
        resp.set_header("Connection", "close")


def _on_request_error(
    req: falcon.Request, resp: falcon.Response, error: RequestError, params: object
) -> None:
    _render(resp, error.status, error.code, str(error), close=error.close_connection)
    if error.retry_after is not None:
        resp.set_header("Retry-After", str(error.retry_after))


def _on_exception(
    req: falcon.Request, resp: falcon.Response, error: Exception, params: object
) -> None:
    # Falcon's own errors have a handler of their own, which calls the serializer.
    log.error("request failed", exc_info=error)
    failure: RequestError = (
        NotReady("the service is not able to answer; see its log")
        if isinstance(error, ServiceError)
        else PredictFailed("prediction failed; see the service log")
    )
    _render(resp, failure.status, failure.code, str(failure), close=False)


def _serialize_http_error(
    req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError
) -> None:
    _render(resp, error.status_code, "http_error", error.title or "error", close=False)
