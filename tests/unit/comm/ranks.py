"""Ranks in other processes: Dask workers, several in one where there are more ranks than workers, or processes to be killed."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from distributed import Client

from daskreg.cluster.worker_calls import workers_of
from daskreg.comm import Communicator, Endpoint, Secret, Timeouts, open_endpoint

Part = Callable[[Communicator], Any]
_endpoints: dict[tuple[str, int], Endpoint] = {}
_runs = itertools.count()
SECRET = Secret(bytes(32))


async def _open(kind: str, run: str, size: int, mine: Sequence[int], deadline: float) -> dict[int, Any]:
    names = [f"worker of rank {r}" for r in range(size)]
    for r in mine:
        timeouts, secret = Timeouts(deadline=deadline), Secret(run.encode())
        _endpoints[run, r] = await open_endpoint(kind, run, r, names, timeouts, "127.0.0.1", secret=secret)
    return {r: _endpoints[run, r].address for r in mine}


async def _connect(run: str, mine: Sequence[int], addresses: Sequence[Any], hosts: Sequence[str]) -> None:
    await asyncio.gather(*[_endpoints[run, r].connect(addresses, hosts) for r in mine])


async def _work(run: str, mine: Sequence[int], part: Part) -> dict[int, Any]:
    done = await asyncio.gather(*[asyncio.to_thread(part, _endpoints[run, r].communicator) for r in mine], return_exceptions=True)
    return dict(zip(mine, done, strict=True))


async def _close(run: str, mine: Sequence[int]) -> None:
    for r in mine:
        await _endpoints[run, r].close()
        await _endpoints.pop((run, r)).close()


class Ranks:
    """``size`` ranks over some workers, connected."""

    def __init__(self, client: Client, kind: str, size: int) -> None:
        self.client, self.run, self.size = client, f"run {next(_runs)}", size
        workers = sorted(workers_of(client))
        self.mine = {w: list(range(i, size, len(workers))) for i, w in enumerate(workers) if i < size}
        found = self._everywhere(_open, kind, self.run, size, each=(60.0,))
        addresses = {r: a for part in found.values() for r, a in part.items()}
        self._everywhere(_connect, self.run, each=([addresses[r] for r in range(size)], ["host"] * size))

    def run_part(self, part: Part) -> list[Any]:
        """What each rank returned or raised."""
        found = self._everywhere(_work, self.run, each=(part,))
        by_rank = {r: a[r] if isinstance(a, dict) else a for w, a in found.items() for r in self.mine[w]}
        return [by_rank[r] for r in range(self.size)]

    def close(self) -> None:
        """Close all endpoints."""
        self._everywhere(_close, self.run, each=())

    def _everywhere(self, function: Any, *common: Any, each: Sequence[Any]) -> dict[str, Any]:
        async def everywhere() -> list[Any]:
            calls = [
                self.client.run(function, *common, ranks, *each, workers=[w], on_error="return") for w, ranks in self.mine.items()
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

        found = self.client.sync(everywhere)
        return {w: a.get(w) if isinstance(a, dict) else a for w, a in zip(self.mine, found, strict=True)}


def run_on_workers(client: Client, kind: str, size: int, part: Part) -> list[Any]:
    """One run; the first failure is raised."""
    group = Ranks(client, kind, size)
    try:
        results = group.run_part(part)
    finally:
        group.close()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def run_in_processes(kind: str, size: int, part: Part, *, apart: bool, deadline: float) -> list[Any]:
    """What each rank, a process of its own, returned or raised; None of one that died."""
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe() for _ in range(size)]
    processes = [
        context.Process(target=_rank_process, args=(pipes[r][1], kind, r, size, part, apart, deadline)) for r in range(size)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    ours = [pipe for pipe, _ in pipes]
    try:
        _send(ours, [_received(pipe) for pipe in ours])
        _send(ours, [_received(pipe) for pipe in ours])
        results = [_received(pipe) for pipe in ours]
        _send(ours, "close")
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    return results


def _send(pipes: Sequence[Connection], what: Any) -> None:
    for pipe in pipes:
        try:
            pipe.send(what)
        except OSError:
            continue


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _rank_process(pipe: Connection, kind: str, rank: int, size: int, part: Part, apart: bool, deadline: float) -> None:
    async def main() -> None:
        names = [f"process {r}" for r in range(size)]
        endpoint = await open_endpoint(kind, "bare", rank, names, Timeouts(deadline=deadline), "127.0.0.1", secret=SECRET)
        pipe.send(endpoint.address)
        await endpoint.connect(await asyncio.to_thread(pipe.recv), [f"host {r}" if apart else "host" for r in range(size)])
        pipe.send("connected")
        await asyncio.to_thread(pipe.recv)
        pipe.send((await asyncio.gather(asyncio.to_thread(part, endpoint.communicator), return_exceptions=True))[0])
        await asyncio.to_thread(pipe.recv)
        await endpoint.close()

    asyncio.run(main())
