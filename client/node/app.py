"""The Flower ClientApp of a site: hands bytes to the worker and its answer back. Nothing else."""

import logging
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ...common.protocol.messages import FIELD, RECORD
from ..worker_socket import AskWorker

_log = logging.getLogger(__name__)


def make_app(connect: Callable[[Context], AskWorker]) -> ClientApp:
    """A ClientApp whose every message is answered by what ``connect`` returns for its node.

    ``connect`` gives the worker's exchange: request bytes → answer bytes, empty for silence. An exception never
    travels: Flower would send its text to the server, and a text can carry a record's.
    """
    app = ClientApp()

    @app.train()
    def exchange(message: Message, context: Context) -> Message:
        try:
            request = message.content.config_records[RECORD][FIELD]
            answer = connect(context)(request) if isinstance(request, bytes) else b""
        except Exception as error:
            _log.error("no answer: %s", type(error).__name__)
            answer = b""
        return Message(RecordDict({RECORD: ConfigRecord({FIELD: answer})}), reply_to=message)

    return app
