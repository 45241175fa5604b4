"""The one error tree.

::

    ProcserverError                 status  code
    ├── ServiceError                          what an operator must mend (start-up)
    │   ├── ConfigError                     service JSON or environment
    │   ├── FgConfigError                   fg.json: names feature, key and reason
    │   ├── FetchError                      a remote folder cannot be copied here
    │   ├── ModelError                      model directory or model
    │   │   └── NotShareable                each worker needs weights of its own
    │   ├── SharedMemoryError               a shared segment cannot be made or read
    │   ├── SourceError                     item source or item cache build
    │   │   └── Refused                     a build that would replace a better one
    │   └── StateInUse                      another process serves from the state folder
    └── RequestError                          what a client is told
        ├── BadRequest              400     bad_request
        │   ├── Undecodable         400     undecodable
        │   ├── BadTensor           400     bad_tensor
        │   ├── BadFeature          400     bad_feature
        │   ├── DebugRefused        400     debug_refused
        │   └── PoisonRequest       400     poison_request
        ├── Unauthorized            401     unauthorized
        ├── NotFound                404     not_found
        ├── OutOfTime               408     out_of_time
        ├── LengthRequired          411     length_required
        ├── TooLarge                413     too_large
        ├── TooManyRequests         429     too_many_requests
        ├── QueueFull               450     queue_full
        ├── PredictFailed           500     predict_failed
        │   └── DeviceLost          500     predict_failed
        └── NotReady                503     not_ready

A request error's message goes to the client as it is, so it names the field,
feature or tensor and never carries model source, paths or secrets; what only
the operator may see goes to the log (``__cause__``).
"""


class ProcserverError(Exception):
    """Base of every error that procserver raises on purpose."""


class ServiceError(ProcserverError):
    """The service cannot start or load as configured."""


class ConfigError(ServiceError):
    """The service JSON is wrong; ``problems`` holds one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class FgConfigError(ServiceError):
    """``fg.json`` cannot be served: which feature, which key, and why."""

    def __init__(self, feature: str, key: str, reason: str) -> None:
        where = f"feature {feature!r}" if feature else "fg.json"
        super().__init__(
            f"{where}, key {key!r}: {reason}" if key else f"{where}: {reason}"
        )
        self.feature = feature
        self.key = key
        self.reason = reason


class FetchError(ServiceError):
    """A remote folder cannot be copied to this machine."""


class ModelError(ServiceError):
    """The model directory or the model in it cannot be served."""


class NotShareable(ModelError):
    """The weights cannot live in shared memory; the message says which and why."""


class StateInUse(ServiceError):
    """Another master serves from the state folder; ``pid``: None if unknown."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class SharedMemoryError(ServiceError):
    """Shared memory does not suffice, or a segment cannot be opened."""


class SourceError(ServiceError):
    """Item features cannot be read, or a cache generation cannot be built."""


class Refused(SourceError):
    """A build of the item cache is not published: what is served stays."""


class RequestError(ProcserverError):
    """A request that is answered with something other than 200."""

    status = 500
    code = "predict_failed"
    close_connection = False
    # Seconds after which the client may try again; None: it need not.
    retry_after: int | None = None


class BadRequest(RequestError):
    """The request is wrong and would be wrong again."""

    status = 400
    code = "bad_request"


class Undecodable(BadRequest):
    """The body is not the protobuf message that this service takes."""

    code = "undecodable"


class BadTensor(BadRequest):
    """An input tensor has the wrong dtype, shape or number of values."""

    code = "bad_tensor"


class BadFeature(BadRequest):
    """A feature has the wrong type or number of values."""

    code = "bad_feature"


class DebugRefused(BadRequest):
    """A debug level that this service does not answer."""

    code = "debug_refused"


class PoisonRequest(BadRequest):
    """Workers have died over this very request a moment ago."""

    code = "poison_request"


class Unauthorized(RequestError):
    """Neither the raw token nor a valid signature."""

    status = 401
    code = "unauthorized"


class NotFound(RequestError):
    """No such service or path here."""

    status = 404
    code = "not_found"


class OutOfTime(RequestError):
    """The request took longer than ``rpc.keepalive``; the connection is closed."""

    status = 408
    code = "out_of_time"
    close_connection = True


class LengthRequired(RequestError):
    """A body of unknown length."""

    status = 411
    code = "length_required"


class TooLarge(RequestError):
    """The body, or a count in it, is over the service's limit."""

    status = 413
    code = "too_large"
    close_connection = True


class TooManyRequests(RequestError):
    """More requests a second than ``rpc.rate_limit``."""

    status = 429
    code = "too_many_requests"
    retry_after = 1


class QueueFull(RequestError):
    """Too many requests are waiting; the connection is closed."""

    status = 450
    code = "queue_full"
    close_connection = True
    retry_after = 1


class ClientGone(RequestError):
    """The client broke the connection off; nobody reads the answer."""

    status = 499
    code = "client_gone"
    close_connection = True


class PredictFailed(RequestError):
    """The model failed on a request that looked right; the log says how."""


class DeviceLost(PredictFailed):
    """The GPU failed for good: this process cannot use it any more."""


class NotReady(RequestError):
    """The service is starting or draining."""

    status = 503
    code = "not_ready"
