# SPDX-License-Identifier: Apache-2.0
"""Many pictures with one model: several in flight, results in order, memory bounded, no item stops the others.

While one picture is computed, others are read from disk, put into tensors or saved. The threads share
the model, which keeps no state of a call. torch is imported only by `encode_many` and `decode_many`.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mlic_fast.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from mlic_fast.codec import FileFormat, ModelOrName
    from mlic_fast.limits import Limits

Item = TypeVar("Item")
Result = TypeVar("Result")

# On a CPU two hide most of what runs in one thread; each more takes a picture's memory.
IN_FLIGHT = 2

_MAX_IN_FLIGHT = 1024


def encode_many(
    images: Iterable[Any],
    model: ModelOrName = None,
    *,
    device: str | torch.device | None = None,
    in_flight: int = IN_FLIGHT,
    format: FileFormat = "mlic",
    limits: Limits | None = None,
    guard: bool = True,
    metadata: bool = True,
    thumbnail: int = 0,
    reduce_depth: bool = False,
    strict: bool = False,
) -> Generator[bytes | Exception, None, None]:
    """Compress pictures one after another, several at once: yields each one's file, in the order of `images`.

    images: what `encode` takes, from any iterable; it is read as results are asked for, at most 2 × in_flight
        items ahead of them.
    in_flight: how many pictures are worked on at once. Each takes the memory of an `encode` of its own.
    Other arguments: as for `encode`; results are the same as its.

    A picture that cannot be encoded gives the exception that `encode` raises instead of bytes, and the others
    go on. Errors of the model are raised at once, and those of `images` itself when their turn comes.
    Closing the iterator, or an exception such as KeyboardInterrupt while it waits, cancels what has not begun
    and waits for what has.
    """
    from mlic_fast.codec import encode, open_model
    from mlic_fast.compute.device import take_own_stream

    network = open_model(model, device)

    def work(image: Any) -> bytes:
        return encode(
            image,
            network,
            format=format,
            limits=limits,
            guard=guard,
            metadata=metadata,
            thumbnail=thumbnail,
            reduce_depth=reduce_depth,
            strict=strict,
        )

    return work_through(work, images, in_flight, partial(take_own_stream, next(network.parameters()).device))


def decode_many(
    files: Iterable[bytes | bytearray | memoryview],
    model: ModelOrName = None,
    *,
    device: str | torch.device | None = None,
    in_flight: int = IN_FLIGHT,
    limits: Limits | None = None,
) -> Generator[Image.Image | Exception, None, None]:
    """Decompress files' contents, several at once: yields each one's PIL image, in the order of `files`.

    model: as for `decode`; None: found for each file by its fingerprint. Other arguments and what becomes of
    errors: as for `encode_many`.
    """
    from mlic_fast.codec import decode, open_model
    from mlic_fast.compute.device import resolve_device, take_own_stream

    place = resolve_device(device)
    named = None if model is None else open_model(model, device)
    opening = opener()

    def work(data: bytes | bytearray | memoryview) -> Image.Image:
        network = named if named is not None else opening(data, device=place, limits=limits)
        return decode(data, network, limits=limits)

    if named is not None:
        place = next(named.parameters()).device
    return work_through(work, files, in_flight, partial(take_own_stream, place))


def opener() -> Callable[..., Any]:
    """`codec.open_model_of`, one call at a time: otherwise each thread would load the same weights first."""
    from mlic_fast.codec import open_model_of

    lock = threading.Lock()

    def opening(*args: Any, **options: Any) -> Any:
        with lock:
            return open_model_of(*args, **options)

    return opening


def work_through(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    in_flight: int = IN_FLIGHT,
    begin: Callable[[], object] | None = None,
) -> Generator[Result | Exception, None, None]:
    """Yield work(item), or the exception that it raised, for each item, in order; `in_flight` threads work.

    Items are taken from their iterator in the caller's thread, at most 2 × in_flight ahead of the results.
    begin: what each thread does first.
    Raises ConfigError for a number of threads that is none.
    """
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or not 1 <= in_flight <= _MAX_IN_FLIGHT:
        raise ConfigError(f"in_flight must be a number from 1 to {_MAX_IN_FLIGHT}, not {in_flight!r}")
    return _work_through(work, items, in_flight, begin or (lambda: None))


def _work_through(
    work: Callable[[Item], Result], items: Iterable[Item], in_flight: int, begin: Callable[[], object]
) -> Generator[Result | Exception, None, None]:
    def guarded(item: Item) -> Result | Exception:
        try:
            return work(item)
        except Exception as error:
            _let_go(error)
            return error

    source = iter(items)
    pending: deque[Future[Result | Exception]] = deque()
    ended = False
    source_error: Exception | None = None
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="mlic-fast", initializer=begin)
    try:
        while True:
            while not ended and len(pending) < 2 * in_flight:
                try:
                    item = next(source)
                except StopIteration:
                    ended = True
                except Exception as error:  # raised when the results before it are out
                    ended, source_error = True, error
                else:
                    pending.append(pool.submit(guarded, item))
                    del item
            if not pending:
                break
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if source_error is not None:
        raise source_error


def _let_go(error: BaseException) -> None:
    """Drop the local variables of the frames that an exception came through.

    A list of failures would keep their pictures and tensors alive; lines and files stay in the traceback.
    """
    seen: set[int] = set()
    following: list[BaseException | None] = [error]
    while following:
        one = following.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        following += [one.__cause__, one.__context__]
