"""What the tests of `hsal play` share: digits as pen strokes, and the page's server in a thread of its own."""

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import uvicorn

from hsal_cli.play.app import HOST, listen
from hsal_cli.scenes.digits.stroke_shapes import WAYS
from hsal_cli.scenes.digits.strokes import parse_way


def strokes_of(digit: int, x: float, y: float, size: float = 34) -> list[list[list[float]]]:
    """The pen strokes of the usual way to write a digit, its upper left corner at (x, y) px."""
    points, curve, along = parse_way(WAYS[digit][0][1])
    path = curve @ points * [0.62 * size, size] + [x, y]
    return [part.round(2).tolist() for part in np.split(path, np.nonzero(np.diff(along) < 0)[0] + 1)]


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """Serves an application on a free port of this machine; gives its address."""
    with listen(0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://{HOST}:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
