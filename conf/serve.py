"""Gunicorn settings: ``gunicorn -c conf/serve.py``.

The service JSON is named by PROCSERVER_CONFIG (default: conf/service.json).
Any setting of gunicorn may be changed here or on its command line (-b, -w ...).
"""

from procserver.lifecycle.boot import child_exit, on_exit, on_starting, pre_fork
from procserver.lifecycle.settings import service_settings
from procserver.lifecycle.worker import post_fork, post_worker_init, worker_exit

_settings = service_settings()

bind = "127.0.0.1:8501"
workers = _settings.workers
threads = _settings.threads
worker_class = "procserver.lifecycle.worker.Worker"
wsgi_app = "procserver.app:create_app"
proc_name = _settings.service.name

# Engines keep thousands of idle connections; what is bounded is requests.
worker_connections = 4096
keepalive = 120
backlog = 2048
timeout = _settings.timeout
graceful_timeout = _settings.graceful_timeout

# Two services of one user would take each other's socket.
control_socket_disable = True
loglevel = "info"

__all__ = [
    "child_exit",
    "on_exit",
    "on_starting",
    "post_fork",
    "post_worker_init",
    "pre_fork",
    "worker_exit",
]
