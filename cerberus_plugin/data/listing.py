"""Images of a data set's folder, and what their names say."""

from __future__ import annotations

import logging
import os
import re

from fastreid.utils import comm
from fastreid.utils.logger import log_first_n

from ..utils.images import SUFFIXES

# Files that Windows leaves in folders of pictures, as in the published Market-1501.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
SUFFIX = f"(?i:{'|'.join(map(re.escape, SUFFIXES))})"
# 0002_c1s1_000451_03.jpg of Market-1501, which has some names in .jpg.jpg, and 0005_c2_f0046985.jpg of DukeMTMC-reID.
MARKET_NAME = rf"(-1|\d{{1,9}})_c(\d{{1,9}})(?:s\d+)?(?:_f?\d+)*{SUFFIX}+"
MARKET_FORM = ("IDENTITY_cCAMERA and numbers after it, as in 0002_c1s1_000451_03.jpg of Market-1501 and "
               "0005_c2_f0046985.jpg of DukeMTMC-reID")
JUNK_PID = -1  # of Market-1501, whose protocol leaves these images out


def list_images(folder: str) -> list[str]:
    """Paths of the images directly in a folder, sorted by name, because file systems differ in their order.

    Images end in one of `utils.images.SUFFIXES`, in upper or lower case. Hidden files are passed over, and so is
    everything else, with one warning that names an example.

    Raises:
        ValueError: if two names differ in nothing but the suffix, such as a picture and its mask.
    """
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FILES:
                is_image = entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()
                (images if is_image else others).append(entry.name)
    if others and comm.is_main_process():
        log_first_n(logging.WARNING, f"{folder}: {len(others)} other file(s) or folder(s) are passed over, such as "
                    f"'{min(others)}'; images end in {', '.join(SUFFIXES)} and are directly in the folder",
                    name="fastreid.cerberus", key="message")
    known: dict[str, str] = {}
    for name in sorted(images):
        other = known.setdefault(re.sub(f"{SUFFIX}+$", "", name), name)
        if other != name:
            raise ValueError(f"{os.path.join(folder, name)}: '{other}' has the same name but for the suffix, and both "
                             "would count as images. Take the one out that is not of the data set.")
    return [os.path.join(folder, name) for name in sorted(images)]


def parse_names(paths: list[str], pattern: str, form: str, depth: int = 1) -> list[tuple[str, ...]]:
    """Path and the pattern's groups of each name, which must match from beginning to end.

    Args:
        form: the pattern in words, for the error.
        depth: trailing parts of the path that are its name; 2 with the folder.

    Raises:
        ValueError: with the first path whose name does not match.
    """
    names = ["/".join(path.split(os.sep)[-depth:]) for path in paths]
    found = [re.fullmatch(pattern, name) for name in names]
    bad = [path for path, match in zip(paths, found) if match is None]
    if bad:
        raise ValueError(f"{bad[0]}: the name does not parse, expected {form} ({len(bad)} of {len(paths)} images "
                         "in its folder). Take files out that are not of the data set.")
    return [(path, *match.groups()) for path, match in zip(paths, found)]


def list_market_images(folder: str, train_name: str | None = None) -> list[tuple[str, str | int, str | int]]:
    """Items (path, pid, camid) of a folder with names in the form of Market-1501 or DukeMTMC-reID, sorted by name.

    Cameras count from 0 as in the host's data sets: `_c1` is camera 0. Images of identity -1 are left out.

    Args:
        train_name: of the data set, for a training folder: identities and cameras become strings such as
            "market1501_2"; None for query and gallery, where they are numbers.
    """
    items = []
    for path, pid, camera in parse_names(list_images(folder), MARKET_NAME, MARKET_FORM):
        if int(pid) != JUNK_PID:
            ids = int(pid), int(camera) - 1
            items.append((path, *(f"{train_name}_{number}" for number in ids)) if train_name else (path, *ids))
    return items
