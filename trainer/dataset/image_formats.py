"""Which image files are read, by their extensions, and which are known but left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import features

# Only these decoders: a file that merely calls itself .png must not start, say, the PostScript interpreter.
_EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "BMP": ("bmp",),
    "WEBP": ("webp",),
    "PCX": ("pcx",),
    "ICO": ("ico",),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "jpc", "j2c"),
}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # not in every build of Pillow

DECODERS = tuple(form for form in _EXTENSIONS if _OPTIONAL.get(form, "zlib") in features.get_supported())
IMAGE_EXTENSIONS = tuple(f".{extension}" for form in DECODERS for extension in _EXTENSIONS[form])

_LEFT_OUT = (
    "heic heif hif heics heifs avifs jxl jxr wdp hdp bpg flif qoi tga icb vda vst dds exr hdr pic pfm pam ppm pgm pbm pnm sgi rgb rgba bw"
    " dib ras xbm xpm psd psb xcf kra ora clip sai afphoto ai eps ps svg svgz wmf emf cur icns jng mng pcd fits fit cin dpx"
    " dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr iiq rwl erf mrw mos kdc dcr raw djvu"
).split()
LEFT_OUT_EXTENSIONS = frozenset(
    f".{extension}" for extension in [*_LEFT_OUT, *(known for form in _OPTIONAL for known in _EXTENSIONS[form])]
) - frozenset(IMAGE_EXTENSIONS)


def count_left_out(paths: Iterable[Path]) -> str:
    """Return how many images of each format that is not read are among the paths: "2 heic, 1 tga", or ""."""
    counts = Counter(path.suffix.lower() for path in paths if path.suffix.lower() in LEFT_OUT_EXTENSIONS)
    return ", ".join(f"{count} {extension[1:]}" for extension, count in sorted(counts.items()))
