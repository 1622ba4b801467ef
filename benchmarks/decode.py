"""Images decoded per second on one core: `pipeline.images` versus Pillow, OpenCV, torchvision and simplejpeg.

    python benchmarks/decode.py                     synthetic photos: noise with the spectrum of a photo
    python benchmarks/decode.py --data FOLDER       mosaics and crops of the images in FOLDER

Decodes JPEGs of 480 x 360, 1920 x 1080 and 4000 x 3000 pixels, quality 90, 4:2:0, as produced by cameras and found on
the web. First compares the pixels with Pillow's. Then all decoders decode the same bytes in turn, on one thread each:
rates are medians over the rounds, and speedups are medians of the ratio to Pillow in each round. Times are CPU times
of the thread, so other work on the machine has little effect. The cases `to N` shrink the image to a long side of N
pixels, and compare with decoding at full size and shrinking afterwards.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
import PIL
import simplejpeg
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import machine
from pipeline.images.codec import decode_image, encode_image, shrink

SIZES = ((360, 480), (1080, 1920), (3000, 4000))
LONG_SIDES = (473, 1024)
BASELINE = "Pillow"
Decoder = Callable[[bytes], NDArray[np.uint8]]


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def by_opencv(content: bytes) -> NDArray[np.uint8]:
    image_HW3 = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB, dst=image_HW3)  # type: ignore[return-value]


def by_torchvision(content: bytes) -> NDArray[np.uint8]:
    image_3HW = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return image_3HW.permute(1, 2, 0).contiguous().numpy()


def by_simplejpeg_fast(content: bytes) -> NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True)


WHOLE: dict[str, Decoder] = {
    BASELINE: by_pillow,
    "OpenCV": by_opencv,
    "torchvision": by_torchvision,
    "simplejpeg": simplejpeg.decode_jpeg,
    "simplejpeg, fast upsampling": by_simplejpeg_fast,
    "decode_image": decode_image,
}


def scaled(content: bytes, least: int) -> NDArray[np.uint8]:
    """Decode a JPEG at 1/8, 1/4 or 1/2, the smallest scale with a long side of at least `least` pixels, or in full."""
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    divisor = next((d for d in (8, 4, 2) if max(height, width) >= d * least), 1)
    return simplejpeg.decode_jpeg(content, min_height=-(-height // divisor), min_width=-(-width // divisor))


def shrinking(long_side: int) -> dict[str, Decoder]:
    """Return decoders to an image whose long side is at most `long_side` pixels."""

    def with_draft(content: bytes) -> NDArray[np.uint8]:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (2 * long_side, 2 * long_side))
        return shrink(np.asarray(image.convert("RGB")), long_side)

    return {
        "Pillow, then shrunk": lambda content: shrink(by_pillow(content), long_side),
        "Pillow's draft, then shrunk": with_draft,
        "decode_image, then shrunk": lambda content: shrink(decode_image(content), long_side),
        "libjpeg's scaling, then shrunk": lambda content: shrink(scaled(content, 2 * long_side), long_side),
    }


def main() -> None:
    options = parse()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        **machine.about(),
        "versions": {
            "python": sys.version.split()[0],
            "pillow": PIL.__version__,
            "opencv": cv2.__version__,
            "torchvision": torchvision.__version__,
            "simplejpeg": simplejpeg.__version__,
        },
        "images": "mosaics and cut-outs of photos" if options.data else "noise with a photo's spectrum",
        "rounds": options.rounds,
        "rows": [],
    }
    sources = [cv2.imread(str(path))[..., ::-1] for path in images_in(options.data)] if options.data else []
    for size in SIZES:
        contents = [encode_image(photo(size, number, sources), quality=90) for number in range(options.images)]
        name = f"{size[1]} x {size[0]}"
        print(f"\n{name}, {statistics.mean(map(len, contents)) / 1000:.0f} kB")
        cases = {"whole": WHOLE} | {f"to {side}": shrinking(side) for side in LONG_SIDES if side < max(size)}
        for case, decoders in cases.items():
            for row in rates(contents, decoders, options.rounds):
                report["rows"].append({"images": name, "case": case} | row)
                print(
                    f"{case:8} {row['decoder']:28} {row['images_per_s']:8.1f} images/s {row['speedup']:6.2f} x "
                    f"   differs by {row['mean_difference']:.3f} on average, {row['largest_difference']} at most",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def rates(contents: list[bytes], decoders: dict[str, Decoder], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each decoder, compared with the first one."""
    first, *_ = decoders
    expected = [decoders[first](content) for content in contents]
    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    for number in range(rounds + 1):
        for name, decode in decoders.items():
            begin = time.thread_time()
            for content in contents:
                decode(content)
            if number > 0:  # the first round fills caches
                seconds[name].append(time.thread_time() - begin)
    rows = []
    for name, own in seconds.items():
        ratios = [base / mine for base, mine in zip(seconds[first], own, strict=True)]
        found = zip((decoders[name](content) for content in contents), expected, strict=True)
        differences = [np.abs(mine.astype(np.int16) - theirs) for mine, theirs in found]
        rows.append(
            {
                "decoder": name,
                "images_per_s": len(contents) / statistics.median(own),
                "speedup": statistics.median(ratios),
                "speedups": [min(ratios), max(ratios)],
                "mean_difference": float(np.mean([difference.mean() for difference in differences])),
                "largest_difference": int(max(difference.max() for difference in differences)),
            }
        )
    return rows


def photo(size: tuple[int, int], number: int, sources: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3): a mosaic of the sources, or a synthetic photo if there are none."""
    height, width = size
    if not sources:
        return made_photo(height, width, number)
    source_height, source_width = sources[0].shape[:2]
    columns, rows = -(-width // source_width), -(-height // source_height)
    pieces = iter(range(number, number + columns * rows))
    strips = [np.concatenate([sources[next(pieces) % len(sources)] for _ in range(columns)], 1) for _ in range(rows)]
    return np.ascontiguousarray(np.concatenate(strips)[:height, :width])


def made_photo(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return noise whose amplitude falls with frequency, as in photos."""
    rng = np.random.default_rng(seed)
    total_HW3 = np.zeros((height, width, 3), np.float32)
    cells = 2
    while cells < max(height, width):
        shape = (max(2, cells * height // max(height, width)), max(2, cells * width // max(height, width)), 3)
        noise = rng.normal(size=shape).astype(np.float32)
        total_HW3 += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR) * (30 / cells**0.5)
        cells *= 2
    return (total_HW3 + 128).clip(0, 255).astype(np.uint8)


def images_in(folder: str) -> list[Path]:
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return paths[:: max(1, len(paths) // 60)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of images, all of one size")
    parser.add_argument("--images", type=int, default=4, help="images of each size (4)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each decoder (7)")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
