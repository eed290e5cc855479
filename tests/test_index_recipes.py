"""Recipes: the built-in ones, the files, and what is refused."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from retrieval_engine.errors import UsageError
from retrieval_engine.index import build_index
from retrieval_engine.index.backends import typed_options
from retrieval_engine.index.build_record import IndexManifest
from retrieval_engine.index.faiss_parts import reason
from retrieval_engine.index.recipes import BUILT_IN, Recipe, find_recipe, nlist_for, read_recipe
from retrieval_engine.testing.vector_store import clustered, write_store

FOLDER = Path(__file__).parents[1] / "indices" / "recipes"


def test_the_files_and_the_built_in_recipes_are_the_same() -> None:
    assert {path.stem: read_recipe(path) for path in FOLDER.glob("*.toml")} == BUILT_IN


def test_every_recipe_key_is_explained_in_the_readme() -> None:
    text = (FOLDER.parent / "README.md").read_text()
    assert all(f"`{f.name}`" in text for f in fields(Recipe) if f.name != "name")


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (1, "flat-fp16"),
        (99_999, "flat-fp16"),
        (100_000, "ivf-scan-fp16"),
        (50_000_000, "ivf-scan-fp16"),
    ],
)
def test_auto_goes_by_the_number_of_rows_and_says_why(rows: int, name: str) -> None:
    recipe, why = find_recipe("auto", rows)
    assert recipe.name == name
    assert name in why
    assert f"{rows:,} rows" in why


@pytest.mark.parametrize(
    ("rows", "nlist"), [(1, 1), (39, 1), (78, 2), (1000, 25), (100_000, 1265), (1_000_000, 4000)]
)
def test_lists_have_rows_enough_to_be_trained(rows: int, nlist: int) -> None:
    assert nlist_for(rows) == nlist
    factory = BUILT_IN["ivf"].factory_for(rows, 64)
    assert factory == (f"IVF{nlist},Flat" if nlist > 1 else "Flat")


@pytest.mark.parametrize(
    ("recipe", "rows", "dim", "factory"),
    [
        ("scan-fp16", 623, 256, "SQfp16"),
        ("scan-fp16", 624, 256, "PCA128,PQ64x4fs,Refine(SQfp16)"),
        ("scan-fp16", 10**6, 10, "PCA4,PQ2x4fs,Refine(SQfp16)"),
        ("scan-fp16", 10**6, 3, "SQfp16"),
        ("ivf-scan-fp16", 623, 256, "SQfp16"),
        ("ivf-scan-fp16", 624, 256, "PCA192,IVF12,PQ96x4fs,Refine(SQfp16)"),
        ("ivf-scan-fp16", 10**6, 10, "PCA6,IVF500,PQ3x4fs,Refine(SQfp16)"),
        ("ivf-scan-fp16", 10**6, 2, "SQfp16"),
    ],
)
def test_codes_have_rows_enough_to_be_trained(
    recipe: str, rows: int, dim: int, factory: str
) -> None:
    assert BUILT_IN[recipe].factory_for(rows, dim) == factory


def test_a_file_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "indices" / "recipes" / "flat.toml"
    file.parent.mkdir(parents=True)
    file.write_text('factory = "SQ8"\ntarget_recall = 0.9\n')
    by_path, _ = find_recipe(str(file), 100)
    assert (by_path.name, by_path.factory, by_path.target_recall) == ("flat", "SQ8", 0.9)
    assert find_recipe("flat", 100)[0].factory == "Flat"
    monkeypatch.chdir(tmp_path)
    assert find_recipe("flat", 100)[0] == by_path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("factory = [", "cannot read recipe"),
        ('about = "x"', "`factory` is missing"),
        ('factory = "Flat"\nnprobe = 3', "unknown key 'nprobe'"),
        ('factory = "Flat"\ntarget_recall = 95', "target_recall is 95"),
        ('factory = "Flat"\nbackend = "annoy"', "no backend 'annoy'; known: faiss"),
        ('factory = "Flat"\ntarget_recall = "all"', "not supported"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_recipe(path)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        UsageError,
        match="no recipe 'hnws'; known: auto, flat, flat-fp16, scan-fp16, ivf-scan-fp16, hnsw",
    ):
        find_recipe("hnws", 10)


@pytest.mark.parametrize("factory", ["IVF256,PQ32", "PQ16x8", "IVF16,PQ8x4,RFlat"])
def test_polysemous_codes_are_refused_with_the_cure(factory: str) -> None:
    with pytest.raises(UsageError, match="polysemous") as caught:
        find_recipe(f"factory:{factory}", 1000)
    cured = caught.value.hint.removeprefix("write ")
    plain = cured.removesuffix("np")
    assert find_recipe(f"factory:{factory.replace(plain, cured)}", 1000)[0].factory.count("np")


def test_polysemous_codes_are_refused_where_a_size_stands_for_their_number() -> None:
    recipe, _ = find_recipe("factory:PCA{half},PQ{quarter}", 1000)
    with pytest.raises(UsageError, match="PQ8 in 'PCA16,PQ8' trains for polysemous codes"):
        recipe.factory_for(1000, 32)


def test_what_faiss_says_is_told_without_its_own_places() -> None:
    said = "Error in void faiss::f(int, std::string) at /project/faiss/f.cpp:12: no such thing"
    assert reason(RuntimeError(said)) == "no such thing"
    assert (
        reason(RuntimeError("Error in f at a.cpp:1: Error: 'n > 0' failed: too few")) == "too few"
    )
    assert reason(RuntimeError("disk full")) == "disk full"


def test_a_size_that_is_none_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"\{threequarters\} in .* is no size; known: \{nlist\}, "):
        find_recipe("factory:PCA{threequarters},Flat", 1000)


@pytest.mark.parametrize(
    "factory",
    ["IVF256,PQ32np", "OPQ32_128,IVF256,PQ32np", "IVF256,PQ32x4fs,Refine(SQfp16)", "SQ8", "RaBitQ"],
)
def test_what_works_is_accepted(factory: str) -> None:
    assert find_recipe(f"factory:{factory}", 1000)[0].factory == factory


@pytest.mark.parametrize(
    "factory", ["LSH", "ITQ,LSH", "SVSFlat", "FlatL2Panorama", "HNSW32_FlatPanorama", "NSG32",
                "HNSW32,RaBitQ"]
)  # fmt: skip
def test_what_cannot_do_inner_products_is_refused(factory: str) -> None:
    with pytest.raises(UsageError, match="does not work with inner products"):
        find_recipe(f"factory:{factory}", 1000)


def test_a_factory_string_builds_an_index_and_admits_a_low_recall(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(2000, 32))
    report = build_index(store, tmp_path / "index", recipe="factory:PQ4x4fs")
    assert report.recall_at_10 < 0.95
    assert "below the 0.95 asked for" in report.remarks[0]
    refined = build_index(store, tmp_path / "i", recipe="factory:IVF16,PQ8x4fs,Refine(SQfp16)")
    assert refined.recall_at_10 > report.recall_at_10
    assert set(IndexManifest.read(tmp_path / "i").effort) >= {"nprobe", "k_factor_rf"}


def test_a_factory_string_that_faiss_does_not_know_is_explained(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", clustered(50, 8))
    with pytest.raises(UsageError, match="faiss cannot make 'Flta'"):
        build_index(store, tmp_path / "index", recipe="factory:Flta")


def test_a_recipe_carries_options_of_its_own_backend_and_needs_no_factory(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class GraphOptions:
        links: int
        metric: str = "ip"

    plain = Recipe(name="graph", options={"links": 32})
    assert typed_options(GraphOptions, plain) == GraphOptions(links=32)
    with pytest.raises(UsageError, match="has no option 'link'; known: links, metric"):
        typed_options(GraphOptions, Recipe(name="graph", options={"link": 32}))
    with pytest.raises(UsageError, match="missing 1 required keyword-only argument: 'links'"):
        typed_options(GraphOptions, Recipe(name="graph"))
    file = tmp_path / "flat.toml"
    file.write_text('factory = "Flat"\n[options]\nlinks = 32\n')
    with pytest.raises(UsageError, match=r"flat.toml: recipe flat: faiss has no option 'links'"):
        read_recipe(file)
