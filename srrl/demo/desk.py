"""One drawing at a time: those who ask stand in line before the thread that draws."""

import queue
from concurrent.futures import Future
from typing import Any, NoReturn

from srrl.demo.answers import Answer, Painter
from srrl.demo.fields import read
from srrl.errors import UserError

LONGEST_LINE = 32


class Desk:
    """A painter and the line before it."""

    def __init__(self, painter: Painter):
        self.painter = painter
        self.line: queue.Queue[tuple[dict[str, Any], Future[Answer]]] = queue.Queue(LONGEST_LINE)

    def ask(self, given: Any) -> "Future[Answer]":
        """Stand in line with a form's values; a future that is cancelled in time is not drawn.
        Raises UserError for values that are not right, and where the line is too long."""
        values, future = read(self.painter.fields, given), Future[Answer]()
        try:
            self.line.put_nowait((values, future))
        except queue.Full:
            raise UserError(f"{LONGEST_LINE} others are waiting: try again later") from None
        return future

    def serve(self) -> NoReturn:
        """Draw what is asked for, for ever; an error goes to who asked."""
        while True:
            values, future = self.line.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self.painter.draw(values))
            except Exception as error:
                future.set_exception(error)
