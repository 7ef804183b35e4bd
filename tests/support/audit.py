"""A small labelled dataset, predictions for it, and synthetic embeddings."""

from cerberus_plugin.attributes.schema import AttributeSchema, Field, Group
from cerberus_plugin.audit.identities import space_of
from cerberus_plugin.audit.predictions import Predictions
from cerberus_plugin.own_data.people import labels_of, read_people
from cerberus_plugin.own_data.schema_file import Wording

import numpy as np

from support.own_data import write_picture

PEOPLE, EACH, SIZE = 12, 6, 24
SCHEMA = AttributeSchema("site", (Field("hat", "head", ("no", "yes")),
                                  *(Field(f"vest {word}", "upper", ("no", "yes"), "vest", word) for word in
                                    ("red", "blue"))),
                         groups=(Group("head", 0), Group("upper")))
WORDING = Wording(SCHEMA, {"vest": ("nothing",)})


def site(folder, people: int = 24):
    """Write and read a dataset: two images of each person under each of two cameras, with labels of hats and vests."""
    lines = ["file_name,person,camera,hat,vest"]
    for person in range(people):
        for number in range(4):
            name = f"{person}_{number}.png"
            write_picture(folder / name, person, number)
            lines.append(f"{name},p{person},{number // 2},{('no', 'yes')[person % 2]},"
                         f"{('red', 'blue', 'Nothing')[person % 3]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return read_people(folder)


def predicted(own, hats: dict[int, float], vests: dict[int, list[float]]) -> Predictions:
    """Make predictions that agree with the labels except for some rows.

    Args:
        own: returned by `site`.
        hats: probability of a hat by row.
        vests: probabilities of none, red and blue by row.
    """
    labels = labels_of(own, WORDING)
    hat = np.where(labels[:, 0] == 1, 0.9, 0.1)
    vest = np.full((len(own), 3), 0.05)
    vest[np.arange(len(own)), np.where(labels[:, 1] == 1, 1, np.where(labels[:, 2] == 1, 2, 0))] = 0.9
    for row, p in hats.items():
        hat[row] = p
    for row, own_row in vests.items():
        vest[row] = own_row
    return Predictions(SCHEMA.columns, [np.stack([1 - hat, hat], axis=1), vest], np.zeros(len(own), int), [])


def pictures(names: np.ndarray, true: np.ndarray, folds: np.ndarray, seed: int = 0):
    """Make embeddings of two models: unit vectors near the centres of the true people.

    Args:
        names: the labelled person of each image.
        true: the true person of each image.
        folds: for each name, the model that was not trained on it.
    """
    rng = np.random.default_rng(seed)
    spaces = []
    for k in range(2):
        centres = rng.normal(size=(true.max() + 1, SIZE))
        vectors = centres[true] / np.sqrt(SIZE) + 0.12 * rng.normal(size=(len(true), SIZE))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        spaces.append(space_of(vectors.astype(np.float16), names, folds == k, names.max() + 1))
    return spaces
