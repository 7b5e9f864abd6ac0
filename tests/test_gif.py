"""Images as GIF (PS3.18 §8.7.4), still and animated; and which image is the thumbnail of many."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from shared.dicom import animation
from tests.conftest import Server
from tests.dicom_files import COLUMNS, ROWS, make_file
from tests.partition import Partition, path_of, problem

GIF = "image/gif"


@pytest.fixture(scope="module")
def archive(server: Server) -> Partition:
    return Partition(server)


def frames_of(data: bytes) -> tuple[list[np.ndarray], list[int]]:
    """The pictures of a GIF and how long each is shown."""
    image = Image.open(io.BytesIO(data))
    assert image.format == "GIF"
    pictures, times = [], []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        pictures.append(np.array(image.convert("RGB")).astype(int))
        times.append(image.info.get("duration", 0))
    return pictures, times


def png(archive: Partition, path: str) -> np.ndarray:
    response = archive.get(path, "image/png")
    assert response.status_code == 200, response.text
    return np.array(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(int)


def test_all_frames_come_as_one_animation(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=5, FrameTime="80", WindowCenter="800", WindowWidth="1400"))
    response = archive.get(f"{path}/rendered", GIF)
    assert (response.status_code, response.headers["Content-Type"]) == (200, GIF)
    pictures, times = frames_of(response.content)
    assert times == [80] * 5
    for number, picture in enumerate(pictures, 1):
        assert np.array_equal(picture, png(archive, f"{path}/frames/{number}/rendered"))
    assert b"NETSCAPE2.0" in response.content
    again = archive.get(f"{path}/rendered", GIF, If_None_Match=response.headers["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    head = archive.request("HEAD", f"{path}/rendered", Accept=GIF)
    assert (head.status_code, head.content, head.headers["Content-Type"]) == (200, b"", GIF)


def test_chosen_frames_come_in_the_order_asked_and_scaled(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=5))
    response = archive.get(f"{path}/frames/4,2/rendered?viewport=12,8", GIF)
    pictures, _ = frames_of(response.content)
    assert [picture.shape for picture in pictures] == [(8, 12, 3)] * 2
    assert np.array_equal(pictures[0], png(archive, f"{path}/frames/4/rendered?viewport=12,8"))


def test_one_frame_is_a_still(archive: Partition) -> None:
    (path,) = archive.keep(make_file())
    whole = archive.get(f"{path}/rendered", GIF)
    (picture,), _ = frames_of(whole.content)
    assert np.array_equal(picture, png(archive, f"{path}/rendered"))
    part = archive.get(f"{path}/rendered", GIF, Range="bytes=0-5")
    assert (part.status_code, part.content) == (206, whole.content[:6])
    assert archive.get(f"{path}/thumbnail", GIF).headers["Content-Type"] == GIF


def test_colours_are_close(archive: Partition) -> None:
    with open(str(get_testdata_file("color3d_jpeg_baseline.dcm")), "rb") as file:
        (path,) = archive.keep(file.read())
    pictures, _ = frames_of(archive.get(f"{path}/frames/1,60/rendered", GIF).content)
    for picture, number in zip(pictures, (1, 60), strict=True):
        assert np.abs(picture - png(archive, f"{path}/frames/{number}/rendered")).mean() < 3


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("*/*", "multipart/related"),
        ("image/gif;q=0.5, multipart/related; type=image/jpeg", "multipart/related"),
        ("image/avif, image/webp, image/*, */*;q=0.8", GIF),
        ("multipart/related; type=image/gif", "multipart/related"),
        ("image/gif", GIF),
    ],
)
def test_the_default_of_several_frames_stays_an_image_each(
    archive: Partition, accept: str, answered: str
) -> None:
    (path,) = archive.keep(make_file(frames=2))
    response = archive.get(f"{path}/rendered", accept)
    assert response.headers["Content-Type"].partition(";")[0] == answered


@pytest.mark.parametrize(
    ("document", "times"),
    [
        ({"00082144": {"Value": [25]}, "00181063": {"Value": [10]}}, [40, 40, 40]),
        ({"00181065": {"Value": [0, 30, 50.5]}}, [30, 50, 50]),
        ({"00181065": {"Value": [0]}, "00181063": {"Value": [33.3]}}, [33] * 3),
        ({"00180040": {"Value": [10]}}, [100] * 3),
        ({"00181063": {"Value": [0.01]}}, [20] * 3),
        ({"00181063": {"Value": ["odd"]}, "00180040": {"Value": [0]}}, [100] * 3),
        ({}, [100] * 3),
    ],
)
def test_frames_are_shown_as_long_as_the_attributes_say(document: dict, times: list[int]) -> None:
    assert animation.times(document, [1, 2, 3]) == times


def test_what_no_gif_is_made_of_is_refused(archive: Partition) -> None:
    (path,) = archive.keep(make_file(frames=animation.MOST_FRAMES + 1))
    detail = problem(archive.get(f"{path}/rendered", GIF), 406)
    assert str(animation.MOST_FRAMES) in detail
    assert archive.get(f"{path}/frames/1,2/rendered", GIF).status_code == 200
    assert problem(archive.get(f"{path}/frames/1,9999/rendered", GIF), 404)
    assert problem(archive.get(f"{path}/frames/1,2/rendered?viewport=5,5,99,99,1,1", GIF), 400)
    (corrupt,) = archive.keep(make_file(frames=2, encapsulated=True))
    assert problem(archive.get(f"{corrupt}/rendered", GIF), 406)


def test_too_many_pixels_are_refused(archive: Partition) -> None:
    count = animation.MOST_PIXELS // (512 * 512) + 1
    pixels = bytes(512 * 512 // 8 * count)
    file = make_file(
        frames=count, Rows=512, Columns=512, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=pixels
    )
    (path,) = archive.keep(file)
    assert f"at most {count - 1};" in problem(archive.get(f"{path}/rendered", GIF), 406)
    assert archive.get(f"{path}/frames/1,2/rendered", GIF).status_code == 200


def test_a_frame_damaged_further_on_cuts_the_animation(archive: Partition) -> None:
    ds = dcmread(str(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm")))
    (good,) = generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([good, good[: len(good) // 2]])
    ds["PixelData"].is_undefined_length = True
    ds.NumberOfFrames, ds.SOPInstanceUID = 2, generate_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    buffer = io.BytesIO()
    ds.save_as(buffer)
    (path,) = archive.keep(buffer.getvalue())
    assert problem(archive.get(f"{path}/frames/2,1/rendered", GIF), 406)
    with pytest.raises(httpx.RemoteProtocolError):
        archive.get(f"{path}/rendered", GIF)
    assert archive.get(f"{path}/frames/1/rendered", GIF).status_code == 200


# --- thumbnails --------------------------------------------------------------------------------------


def constant(value: int) -> bytes:
    return value.to_bytes(2, "little") * (ROWS * COLUMNS)


def shade(archive: Partition, path: str) -> int:
    """The grey of a thumbnail whose pixels are all alike."""
    return int(png(archive, f"{path}/thumbnail")[0, 0, 0])


def image(study: str, series: str, value: int, **attributes: object) -> bytes:
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    return make_file(study, series, PixelData=constant(value), **window, **attributes)


def test_the_middle_instance_is_that_by_instance_number(archive: Partition) -> None:
    study, series = str(generate_uid()), str(generate_uid())
    order = [(5, 200), (1, 10), (3, 100), (2, 50), (4, 150)]
    files = [image(study, series, value, InstanceNumber=number) for number, value in order]
    archive.keep(*files, image(study, series, 250), image(study, series, 251))
    assert abs(shade(archive, f"studies/{study}/series/{series}") - 150) <= 1
    assert abs(shade(archive, f"studies/{study}") - 150) <= 1
    assert abs(shade(archive, path_of(files[0])) - 200) <= 1


def test_a_study_is_shown_by_its_largest_series_of_images(archive: Partition) -> None:
    study = str(generate_uid())
    scout, volume, derived = (str(generate_uid()) for _ in range(3))
    archive.keep(image(study, scout, 10, InstanceNumber=1))
    segments = make_file(study, derived, frames=9, Modality="SEG", PixelData=constant(250) * 9)
    archive.keep(segments, *(image(study, volume, 100, InstanceNumber=n) for n in range(3)))
    assert abs(shade(archive, f"studies/{study}") - 100) <= 1
    alone = str(generate_uid())
    archive.keep(make_file(alone, frames=2, Modality="SEG"))
    assert archive.get(f"studies/{alone}/thumbnail").status_code == 200
