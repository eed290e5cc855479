"""rclip's indexing of a folder, with random vectors where its model would be asked; see `unchanged`."""

import json
import sys
from typing import Any

import numpy as np
from rclip import db, main, model
from rclip.utils import helpers

ASKED = 0


class RandomVectors(model.Model):  # type: ignore[misc]  # its package has no types
    """Its model without weights, which are on the hub only."""

    def compute_preprocessed_image_features(self, images: list[Any], **_: bool) -> Any:
        global ASKED
        ASKED += len(images)
        rng = np.random.default_rng(len(images))
        return rng.standard_normal((len(images), self.VECTOR_SIZE)).astype(np.float32)


def run(folder: str) -> None:
    """Index, and say how many vectors were asked for and how many there are."""
    database = db.DB(helpers.get_app_datadir() / "db.sqlite3")
    indexer = main.RClip(RandomVectors(), database, 8, None)
    indexer.ensure_index(folder)
    indexer.close()
    kept = sum(1 for _ in database.get_image_vectors_by_dir_path(folder))
    database.close()
    print(json.dumps({"encoded": ASKED, "files": kept}))


run(sys.argv[1])
