"""The socket that is read in large pieces: nothing is lost or turned round, and no more is read than is allowed."""

import os
import random
import socket
from collections.abc import Iterator

import pytest

from sluice.doors.mqtt_socket import AHEAD, BufferedSocket

DATA = bytes(range(256)) * 4


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(sender, receiver that does not block)"""
    sender, receiver = socket.socketpair()
    receiver.setblocking(False)
    with sender, receiver:
        yield sender, receiver


def read(reader: BufferedSocket, size: int) -> bytes:
    """As paho does: whole, in as many calls as it takes."""
    got = b""
    while len(got) < size:
        part = reader.recv(size - len(got))
        assert part
        got += part
    return got


@pytest.mark.parametrize("cut", range(1, 12))
def test_whatever_pieces_come_in_and_are_asked_for(pair: tuple[socket.socket, socket.socket], cut: int) -> None:
    sender, receiver = pair
    reader = BufferedSocket(receiver)
    got = b""
    for at in range(0, len(DATA), cut):
        sender.sendall(DATA[at : at + cut])
        while len(got) < min(at + cut, len(DATA)):
            got += reader.recv(1 + len(got) % 5)
        with pytest.raises(BlockingIOError):
            reader.recv(3)
        assert reader.pending() == 0
    assert got == DATA


def test_small_ones_are_read_at_once_and_told_as_pending(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    reader = BufferedSocket(receiver)
    sender.sendall(DATA)
    assert reader.pending() == 0
    for at, byte in enumerate(DATA):
        assert reader.recv(1) == bytes([byte])
        assert reader.pending() == len(DATA) - at - 1
    with pytest.raises(BlockingIOError):
        receiver.recv(1)


def test_the_end_comes_after_what_was_sent_before_it(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    reader = BufferedSocket(receiver)
    sender.sendall(DATA)
    sender.close()
    assert read(reader, len(DATA)) == DATA
    assert reader.recv(1) == b""
    assert reader.recv(1) == b""
    assert reader.pending() == 0


def test_a_large_body_between_small_ones(pair: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = pair
    sender.setblocking(False)
    reader = BufferedSocket(receiver)
    sizes = [1, 2, 3 * AHEAD + 17, 1, 1, AHEAD, 5, AHEAD - 1, 1]
    sent = os.urandom(sum(sizes))
    at, got = 0, bytearray()
    for size in sizes:
        wanted = len(got) + size
        while len(got) < wanted:
            try:
                at += sender.send(sent[at : at + random.randint(1, 100_000)])
            except BlockingIOError:
                pass  # the receiver has to read first
            try:
                got += reader.recv(wanted - len(got))
            except BlockingIOError:
                pass  # the sender has to send first
    assert bytes(got) == sent


def test_no_more_is_read_ahead_than_allowed(pair: tuple[socket.socket, socket.socket]) -> None:
    """A reader that stops holds up who sends."""
    sender, receiver = pair
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * AHEAD)
    reader = BufferedSocket(receiver)
    sent = os.urandom(3 * AHEAD)
    sender.sendall(sent)
    assert reader.recv(1) == sent[:1]
    assert reader.pending() < AHEAD
    assert receiver.recv(1) == sent[1 + reader.pending() :][:1]
