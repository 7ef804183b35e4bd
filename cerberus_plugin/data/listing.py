"""Listing of dataset folders, and parsing of file names."""

from __future__ import annotations

import logging
import os
import re

from fastreid.utils import comm
from fastreid.utils.logger import log_first_n

from ..utils.images import SUFFIXES

# Files that Windows creates in image folders, as in the published Market-1501.
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
SUFFIX = f"(?i:{'|'.join(map(re.escape, SUFFIXES))})"
# 0002_c1s1_000451_03.jpg of Market-1501 (some names end in .jpg.jpg) and 0005_c2_f0046985.jpg of DukeMTMC-reID.
MARKET_NAME = rf"(-1|\d{{1,9}})_c(\d{{1,9}})(?:s\d+)?(?:_f?\d+)*{SUFFIX}+"
MARKET_FORM = ("IDENTITY_cCAMERA and numbers after it, as in 0002_c1s1_000451_03.jpg of Market-1501 and "
               "0005_c2_f0046985.jpg of DukeMTMC-reID")
JUNK_PID = -1  # images that the protocol of Market-1501 ignores


def list_images(folder: str) -> list[str]:
    """List the paths of the images directly in a folder, sorted by name.

    Names of images end in one of `utils.images.SUFFIXES`, in upper or lower case. Hidden files are skipped. Other files
    and folders are skipped with one warning that names an example.

    Raises:
        ValueError: if two names differ only in the suffix, such as those of an image and its mask.
    """
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FILES:
                is_image = entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()
                (images if is_image else others).append(entry.name)
    if others and comm.is_main_process():
        log_first_n(logging.WARNING, f"{folder}: {len(others)} other file(s) or folder(s) are skipped, such as "
                    f"'{min(others)}'; images end in {', '.join(SUFFIXES)} and are directly in the folder",
                    name="fastreid.cerberus", key="message")
    known: dict[str, str] = {}
    for name in sorted(images):
        other = known.setdefault(re.sub(f"{SUFFIX}+$", "", name), name)
        if other != name:
            raise ValueError(f"{os.path.join(folder, name)}: '{other}' has the same name except for the suffix, and "
                             "both would be used. Remove the file that does not belong to the dataset.")
    return [os.path.join(folder, name) for name in sorted(images)]


def parse_names(paths: list[str], pattern: str, form: str, depth: int = 1) -> list[tuple[str, ...]]:
    """Match the names of images with a regular expression.

    Args:
        paths: images of one folder.
        pattern: must match the whole name.
        form: description of the pattern for the error message.
        depth: number of trailing parts of the path that form the name; 2 includes the folder.

    Returns:
        the path and the groups of the pattern, for each image.

    Raises:
        ValueError: if a name does not match; names the first one.

    Examples:
        >>> parse_names(["a/0002_c1.jpg"], r"(\\d+)_c(\\d+)\\.jpg", "IDENTITY_cCAMERA.jpg")
        [('a/0002_c1.jpg', '0002', '1')]
    """
    names = ["/".join(path.split(os.sep)[-depth:]) for path in paths]
    found = [re.fullmatch(pattern, name) for name in names]
    bad = [path for path, match in zip(paths, found) if match is None]
    if bad:
        raise ValueError(f"{bad[0]}: the name does not have the form {form} ({len(bad)} of {len(paths)} images "
                         "in its folder). Remove files that do not belong to the dataset.")
    return [(path, *match.groups()) for path, match in zip(paths, found)]


def list_market_images(folder: str, train_name: str | None = None) -> list[tuple[str, str | int, str | int]]:
    """List the images of a folder with names in the form of Market-1501 or DukeMTMC-reID, sorted by name.

    Args:
        folder: folder of images.
        train_name: name of the dataset for a training folder, in which identities and cameras are strings such as
            "market1501_2"; None for query and gallery, in which they are numbers.

    Returns:
        items (path, pid, camid). Cameras are numbered from 0 as in FastReID: `_c1` is camera 0. Images of identity -1
        are excluded.
    """
    items = []
    for path, pid, camera in parse_names(list_images(folder), MARKET_NAME, MARKET_FORM):
        if int(pid) != JUNK_PID:
            ids = int(pid), int(camera) - 1
            items.append((path, *(f"{train_name}_{number}" for number in ids)) if train_name else (path, *ids))
    return items
