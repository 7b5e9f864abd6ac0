"""Multipart bodies, read as they arrive (RFC 2046, RFC 2387)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.web.multipart import MultipartReader, MultipartWriter, parse_content_type


async def _in_pieces(body: bytes, step: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), step):
        yield body[start : start + step]


async def _read(body: bytes, boundary: str = "b", step: int = 1 << 16) -> list[tuple[str, bytes]]:
    """Media type and bytes of each part of a body that arrives ``step`` bytes at a time."""
    found = []
    async for part in MultipartReader(_in_pieces(body, step), boundary).parts():
        content = b"".join([chunk async for chunk in part.chunks])
        found.append((part.content_type.media_type, content))
    return found


def _write(contents: list[bytes], boundary: str = "b") -> bytes:
    writer = MultipartWriter(boundary)
    parts = [writer.begin("application/dicom", len(content)) + content + writer.end for content in contents]
    return b"".join(parts) + writer.close()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 10_000])
async def test_parts_do_not_depend_on_how_the_bytes_arrive(step: int) -> None:
    contents = [b"one", b"", b"\r\n", b"\r\n--", b"--b", b"\r\n--c\r\n", b"\r\n-\r\n--\r\n\r", b"x" * 1000]
    assert await _read(b"preamble\r\n" + _write(contents) + b"epilogue", step=step) == [
        ("application/dicom", content) for content in contents
    ]


@given(st.lists(st.binary(max_size=50).filter(lambda c: b"--b" not in c), max_size=5), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
async def test_any_bytes_come_out_as_they_went_in(contents: list[bytes], step: int) -> None:
    assert [content for _, content in await _read(_write(contents), step=step)] == contents


@given(
    st.lists(
        st.sampled_from(
            [b"--b", b"--", b"\r\n", b"\r", b"\n", b":", b"Content-Type", b" ", b"x", b"\0", b"b"]
        ),
        max_size=30,
    ),
    st.integers(1, 20),
)
@settings(max_examples=500, deadline=None)
async def test_a_malformed_body_is_refused_and_nothing_else_happens(pieces: list[bytes], step: int) -> None:
    body = b"".join(pieces)
    try:
        found = await _read(body, step=step)
    except InvalidRequest:
        return
    assert len(found) <= body.count(b"--b")


async def test_parts_that_arrive_together_have_their_own_types() -> None:
    types = ["a/b", "", "c/d"]
    parts = [f"--b\r\nContent-Type: {t}\r\n\r\n{t}\r\n" if t else "--b\r\n\r\n\r\n" for t in types]
    assert await _read("".join(parts).encode() + b"--b--") == [(t, t.encode()) for t in types]


async def test_what_a_consumer_leaves_unread_is_passed_over() -> None:
    body = _write([b"x" * 100, b"second"])
    contents = []
    async for part in MultipartReader(_in_pieces(body, 10), "b").parts():
        contents.append(await anext(part.chunks))
    assert len(contents) == 2
    assert b"second".startswith(contents[1])


async def test_a_boundary_with_a_longer_one_in_the_body_is_no_match() -> None:
    body = b"--b\r\n\r\none\r\n--bb\r\nstill one\r\n--b--"
    assert await _read(body) == [("", b"one\r\n--bb\r\nstill one")]


@pytest.mark.parametrize("length", [3, 5, 7, 8, 10, 13, 14])
async def test_a_body_without_a_closing_boundary_is_refused(length: int) -> None:
    body = b"--b\r\n\r\nx\r\n--b--"[:length]
    with pytest.raises(InvalidRequest, match="closing boundary"):
        await _read(body)


@pytest.mark.parametrize(
    ("header", "media_type", "parameters"),
    [
        (None, "", {}),
        ("", "", {}),
        ("Application/DICOM", "application/dicom", {}),
        ('a/b; X=1; y="2; 3"', "a/b", {"x": "1", "y": "2; 3"}),
        ('multipart/related; boundary="a b"', "multipart/related", {"boundary": "a b"}),
        (";;;", "", {}),
        ('a/b; x="unclosed', "a/b", {"x": '"unclosed'}),
    ],
)
def test_content_types(header: str | None, media_type: str, parameters: dict[str, str]) -> None:
    parsed = parse_content_type(header)
    assert parsed.media_type == media_type
    assert {k: v for k, v in parsed.parameters.items() if k} == parameters


def test_what_is_written() -> None:
    writer = MultipartWriter("b")
    assert writer.begin("a/b; c=d", 3, "http://x/1") == (
        b"--b\r\nContent-Type: a/b; c=d\r\nContent-Length: 3\r\nContent-Location: http://x/1\r\n\r\n"
    )
    assert writer.begin("a/b") == b"--b\r\nContent-Type: a/b\r\n\r\n"
    assert (writer.end, writer.close()) == (b"\r\n", b"--b--\r\n")
