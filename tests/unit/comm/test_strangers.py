"""Who does not know the secret of a run is not let in, is told nothing, and nothing that he sends is executed."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import psutil
import pytest
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.security import Security

from daskreg.cluster.isolation import temporary_security
from daskreg.comm import Secret, Timeouts, open_endpoint, tcp
from daskreg.comm.secret import GREETING, KEY_BYTES, NONCE_BYTES, PROOF_BYTES, RANK, NotAuthenticated
from daskreg.comm.wire import PREFIX, read_message, write_message
from daskreg.errors import RankLost
from tests.unit.comm.ranks import SECRET


@asynccontextmanager
async def endpoints(secrets=(SECRET, SECRET), transport="tcp", **options):
    """Two ranks that are not connected yet."""
    names, timeouts = ["a", "b"], Timeouts(deadline=20)
    opened = [
        await open_endpoint(transport, "run", r, names, timeouts, "127.0.0.1", secret=secret, **options)
        for r, secret in enumerate(secrets)
    ]
    try:
        yield opened
    finally:
        for endpoint in opened:
            await endpoint.close()


async def connect(opened):
    await asyncio.gather(*[e.connect([o.address for o in opened], ["host"] * 2) for e in opened])


async def exchanged(opened):
    """What rank 0 receives from rank 1."""
    into = np.zeros(3)
    opened[1].communicator.send(0, [np.arange(3.0)])
    await asyncio.to_thread(opened[0].communicator.receive(1, [into]).wait)
    return into.tolist()


class Executes:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_dask(message: bytes) -> bytes:
    """A message of Dask's protocol: one frame, its length before it."""
    frames = struct.pack("<QQ", 1, len(message)) + message
    return struct.pack("<Q", len(frames)) + frames


def attempts(path: Path) -> dict[str, bytes]:
    """What a stranger may send first."""
    pickled = pickle.dumps(Executes(path))
    handshake = msgpack.packb({"__Serialized__": True, "serializer": "pickle", "data": pickled})
    zeros = bytes(RANK.size + NONCE_BYTES + PROOF_BYTES)
    return {
        "a pickle": pickled * 40,
        "a handshake of Dask": as_dask(handshake),
        "a rank without proof": RANK.pack(1) + zeros[RANK.size :],
        "a rank that does not exist": RANK.pack(77) + zeros[RANK.size :],
        "the greeting": GREETING + zeros,
        "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9,
        "an endless stream": os.urandom(1 << 20),
    }


def ask(address: str, data: bytes) -> bytes:
    """All that a listener answers to some bytes."""
    host, port = parse_host_port(parse_address(address)[1])
    answer = b""
    with socket.create_connection((host, port), timeout=20) as stream:
        try:
            stream.sendall(data)
            while part := stream.recv(4096):
                answer += part
        except ConnectionError:
            pass
    return answer


@pytest.mark.parametrize("attempt", attempts(Path("x")))
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
def test_a_stranger_gets_nothing_but_a_number_and_disturbs_nobody(tmp_path, attempt, encrypted):
    async def scene():
        async with endpoints(security=temporary_security() if encrypted else None) as opened:
            answer = await asyncio.to_thread(ask, opened[0].address, attempts(tmp_path / "executed")[attempt])
            await connect(opened)
            assert await exchanged(opened) == [0, 1, 2]
            return answer, await asyncio.to_thread(ask, opened[0].address, attempts(tmp_path / "executed")[attempt])

    for answer in asyncio.run(scene()):
        assert len(answer) <= len(GREETING) + NONCE_BYTES, "TLS answers with an alert of seven bytes"
    assert not (tmp_path / "executed").exists()


def test_a_silent_stranger_is_closed_after_a_while(monkeypatch):
    monkeypatch.setattr(tcp, "PROOF_TIMEOUT", 0.3)

    async def scene():
        async with endpoints() as opened:
            return await asyncio.to_thread(ask, opened[0].address, b"")

    assert asyncio.run(scene()).startswith(GREETING)


@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
def test_a_rank_with_another_secret_is_not_let_in(encrypted):
    async def scene():
        async with endpoints((SECRET, Secret()), security=temporary_security() if encrypted else None) as opened:
            await connect(opened)

    with pytest.raises(RankLost, match=r"rank 0 \(a\) was lost"):
        asyncio.run(scene())


def test_a_stranger_without_the_certificate_is_not_let_in_although_he_knows_the_secret():
    async def scene():
        async with endpoints(security=temporary_security()) as opened, endpoints(security=Security.temporary()) as strangers:
            with pytest.raises(RankLost, match=r"rank 0 \(a\) was lost"):
                await strangers[1].connect([opened[0].address, ""], ["host"] * 2)
            await connect(opened)
            assert await exchanged(opened) == [0, 1, 2]

    asyncio.run(scene())


class Recorded:
    """A stream in memory that keeps what is written."""

    def __init__(self, incoming: bytes) -> None:
        self.incoming, self.written = incoming, b""

    async def read_bytes(self, number: int) -> bytes:
        found, self.incoming = self.incoming[:number], self.incoming[number:]
        return found

    def write(self, data: bytes) -> asyncio.Future[None]:
        self.written += data
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def test_the_proof_of_an_earlier_connection_is_worth_nothing():
    """Both ends draw a number for every connection."""
    greeting = GREETING + bytes(NONCE_BYTES)
    rank = Recorded(greeting + bytes(PROOF_BYTES))
    with pytest.raises(NotAuthenticated):
        asyncio.run(SECRET.introduce(rank, "run", 1, 0))
    with pytest.raises(NotAuthenticated):
        asyncio.run(SECRET.accept(Recorded(rank.written), "run", 0))


def test_a_listener_that_does_not_know_the_secret_is_noticed():
    impostor = Recorded(GREETING + bytes(NONCE_BYTES) + bytes(PROOF_BYTES))
    with pytest.raises(NotAuthenticated, match="does not know the secret"):
        asyncio.run(SECRET.introduce(impostor, "run", 1, 0))
    own_proof = Recorded(impostor.written)
    with pytest.raises(NotAuthenticated):  # returning the proof of the other end
        asyncio.run(SECRET.introduce(Recorded(GREETING + bytes(NONCE_BYTES) + own_proof.incoming[-PROOF_BYTES:]), "run", 1, 0))
    with pytest.raises(NotAuthenticated, match="not that of a rank"):
        asyncio.run(SECRET.introduce(Recorded(bytes(99)), "run", 1, 0))


def test_a_secret_is_random_and_no_text_shows_it():
    first, second = Secret(), Secret()
    assert first.key != second.key
    assert len(first.key) == KEY_BYTES
    assert repr(first) == "Secret()"


def test_every_message_has_a_tag_of_its_own_that_follows_from_the_secret():
    tags = {SECRET.tag(source, to, n) for source in range(3) for to in range(3) for n in range(500)}
    assert len(tags) == 9 * 500
    assert min(tags) < 1 << 60 < max(tags) < 1 << 64
    assert not tags & {Secret(b"another").tag(0, 1, n) for n in range(500)}


# --- messages ---------------------------------------------------------------------------------------------------------------


class Pipe(Recorded):
    """A stream in memory from a writer to a reader."""

    async def read_into(self, buffer: memoryview) -> int:
        buffer[:] = await self.read_bytes(len(buffer))
        return len(buffer)


def message(description: bytes, data: bytes = b"") -> bytes:
    return PREFIX.pack(len(description), len(data)) + description + data


@pytest.mark.parametrize("size", [0, 3, 100_000])
def test_a_message_is_read_as_it_was_written(size):
    arrays = [np.arange(size, dtype=np.float32), np.zeros((0, 4), np.int64), np.array(1j), np.ones((2, size), bool)]
    stream = Pipe(b"")
    asyncio.run(write_message(stream, arrays))
    found = asyncio.run(read_message(Pipe(stream.written)))
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (message(b'[["|O", [1]]]', pickle.dumps(Executes("never"))), "arrays of numbers"),
        (message(b'[["|V8", [1]]]', bytes(8)), "arrays of numbers"),
        (message(b'[["<f4", [-1]]]', bytes(4)), "arrays of numbers"),
        (message(b'[["<f4", [3]]]', bytes(4)), "does not have the length"),
        (message(pickle.dumps(Executes("never"))), "codec can't decode"),
        (PREFIX.pack(1 << 30, 0), "at most"),
    ],
)
def test_what_is_no_message_is_refused(sent, words):
    with pytest.raises(ValueError, match=words):
        asyncio.run(read_message(Pipe(sent)))
    assert not os.path.exists("never")


# --- UCX --------------------------------------------------------------------------------------------------------------------


def listening() -> set[str]:
    """Addresses at which this process listens."""
    return {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(("same_memory", "expected"), [(True, set()), (False, {"127.0.0.1"})])
def test_ucx_listens_at_the_address_of_the_cluster_or_nowhere(same_memory, expected):
    pytest.importorskip("ucxx")

    async def scene():
        before = listening()
        async with endpoints(transport="ucx", same_memory=same_memory) as opened:
            found = listening() - before
            await connect(opened)
            return found, await exchanged(opened)

    assert asyncio.run(scene()) == (expected, [0, 1, 2])


def test_a_message_of_another_run_is_never_received():
    """It reaches the rank and has the right number, and is not what the rank waits for."""
    pytest.importorskip("ucxx")

    async def scene():
        async with endpoints((SECRET, Secret()), "ucx", same_memory=True) as opened:
            await connect(opened)
            opened[0].communicator.timeouts.deadline = 0.5
            return await exchanged(opened)

    with pytest.raises(RankLost, match=r"rank 1 \(b\) was silent"):
        asyncio.run(scene())


def test_active_infiniband_stays_in_use_beside_the_interface_of_the_cluster(tmp_path, monkeypatch):
    ucx = pytest.importorskip("daskreg.comm.ucx")
    addresses = {"eth0": [SimpleNamespace(address="10.0.0.7")], "wlan0": [SimpleNamespace(address="10.9.9.9")]}
    for port, state in (("1", "4: ACTIVE\n"), ("2", "1: DOWN\n")):
        (tmp_path / "mlx5_0" / "ports" / port).mkdir(parents=True)
        (tmp_path / "mlx5_0" / "ports" / port / "state").write_text(state)
    monkeypatch.setattr(ucx.psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(ucx, "INFINIBAND", tmp_path)
    assert ucx.network_devices("10.0.0.7") == "eth0,mlx5_0:1"
    assert ucx.network_devices("10.0.0.8") is None
