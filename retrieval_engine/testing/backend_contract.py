"""What every index backend must do: the contract of an index, through a store and a folder."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from retrieval_engine.errors import UsageError
from retrieval_engine.index import SavedIndex, backends, build_index, open_index
from retrieval_engine.index.backends import Rows
from retrieval_engine.index.recipes import find_recipe
from retrieval_engine.index.vectors import image_vectors
from retrieval_engine.testing.index_contract import IndexContract, Vectors, brute_force
from retrieval_engine.testing.vector_store import clustered, write_store


class BackendContract(IndexContract):
    """Subclass it with `recipe`. All is asked at the greatest effort, where answers are exact.

    A recipe that keeps rows in fewer bits says so by `tolerance` and `agreement`.
    """

    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._new_folder = tmp_path_factory.mktemp

    @abstractmethod
    def recipe(self, folder: Path) -> str:
        """A recipe of the backend, as `build_index` takes it.

        Args:
            folder: an empty one, for a TOML file if the recipe is not built in.
        """

    def build(self, vectors: Vectors) -> SavedIndex:
        """An index over (n, v, d) float32 vectors, built of a store and opened again."""
        folder = self._new_folder("index")
        store = write_store(folder / "store", vectors)
        build_index(store, folder / "built", recipe=self.recipe(folder))
        index = open_index(folder / "built")
        folder = index.path / index.manifest.folder
        rows = backends.load(index.manifest.backend).open_rows(folder, {})
        rows.set_effort(list(rows.efforts())[-1])
        return SavedIndex(index.path, index.manifest, rows)

    def _rows(self, vectors: Vectors) -> tuple[Callable[[Mapping[str, int]], Rows], Rows]:
        """A function that opens vectors the backend indexed, and what it opened."""
        folder, place = self._new_folder("rows"), self._new_folder("store")
        stored = image_vectors(write_store(place / "store", vectors), "itc", None)
        recipe, _ = find_recipe(self.recipe(folder), stored.rows)
        backend = backends.load(recipe.backend)
        assert backend.build(recipe, stored, folder, backends.How())
        opened = partial(backend.open_rows, folder)
        return opened, opened({})

    def test_rows_opened_with_a_setting_answer_as_those_it_was_set_on(self) -> None:
        open_rows, rows = self._rows(clustered(400, 16, seed=7)[:, None])
        queries = clustered(20, 16, seed=8)
        for effort in rows.efforts():
            rows.set_effort(effort)
            scores, numbers = rows.search_rows(queries, 12)
            opened = open_rows(effort)
            assert (opened.rows, opened.dim, opened.effort) == (400, 16, effort)
            found_scores, found = opened.search_rows(queries, 12)
            np.testing.assert_array_equal(found, numbers)
            np.testing.assert_array_equal(found_scores, scores)

    def test_more_effort_finds_no_less(self) -> None:
        vectors, queries = clustered(600, 16, seed=9), clustered(50, 16, seed=10)
        _, rows = self._rows(vectors[:, None])
        _, expected = brute_force(vectors[:, None], queries, 10)
        recalls = []
        for effort in rows.efforts():
            rows.set_effort(effort)
            assert rows.effort == effort
            _, numbers = rows.search_rows(queries, 10)
            recalls.append(
                np.mean([np.isin(a, b).mean() for a, b in zip(expected, numbers, strict=True)])
            )
        assert recalls[-1] >= self.agreement
        assert recalls[-1] == max(recalls)

    def test_rows_are_the_best_first(self) -> None:
        _, rows = self._rows(clustered(90, 8, seed=11)[:, None])
        rows.set_effort(list(rows.efforts())[-1])
        scores, numbers = rows.search_rows(clustered(5, 8, seed=12), 90)
        assert (np.diff(scores, axis=1) <= 0).all()
        assert (np.sort(numbers, axis=1) == np.arange(90)).all()

    def test_an_unknown_option_is_refused(self) -> None:
        recipe, _ = find_recipe(self.recipe(self._new_folder("recipe")), 100)
        backend = backends.load(recipe.backend)
        backend.read_options(recipe)
        with pytest.raises(UsageError, match="colour"):
            backend.read_options(replace(recipe, options={**recipe.options, "colour": "red"}))

    def test_the_manifest_says_what_it_was_built_with(self) -> None:
        manifest = self.build(clustered(60, 8)[:, None]).manifest
        assert manifest.versions[manifest.backend]
        assert manifest.rows == 60
