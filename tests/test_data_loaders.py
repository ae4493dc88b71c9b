"""The named logs: tiny copies of each form, and the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedquilt.config import DataConfig
from fedquilt.errors import DataError
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.log import InteractionLog


def load(dataset: str, folder: Path) -> InteractionLog:
    return load_log(DataConfig(dataset=dataset, path=str(folder)))


def clicks(log: InteractionLog) -> list[tuple[int, int]]:
    return [(int(log.user_ids[u]), int(log.item_ids[i])) for u, i in zip(log.users_C, log.items_C, strict=True)]


def test_ml_100k_reads_its_raw_and_its_inter_form_alike(tmp_path):
    raw, inter = tmp_path / "raw", tmp_path / "inter"
    raw.mkdir()
    inter.mkdir()
    (raw / "u.data").write_text("1\t20\t5\t100\n1\t10\t3\t50\n2\t10\t4\t70\n")
    flags = {10: "0|0|0|0|0|1" + "|0" * 13, 20: "0|1" + "|0" * 17}
    (raw / "u.item").write_text("".join(f"{i}|Film {i} (199{i // 10})|||link|{flags[i]}\n" for i in flags))
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (inter / "ml-100k.inter").write_text(header + "1\t20\t5\t100\n1\t10\t3\t50\n2\t10\t4\t70\n")
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    (inter / "ml-100k.item").write_text(header + "10\tFilm 10\t1991\tComedy\n20\tFilm 20\t1992\tAction\n")
    one, other = load("ml-100k", raw), load("ml-100k", inter)
    assert clicks(one) == clicks(other) == [(1, 10), (1, 20), (2, 10)]
    assert one.item_titles == other.item_titles == ("Film 10", "Film 20")
    assert one.feature_names == other.feature_names == ("Action", "Comedy", "year")
    assert one.item_features_IF.tolist() == other.item_features_IF.tolist() == [[0, 1, -1], [1, 0, 1]]


def test_ml_100k_takes_the_first_of_two_equal_times_in_the_frozen_row_order_for_the_later(tmp_path):
    (tmp_path / "ratings.pfedrec.dat").write_text("1,30,5,100\n1,20,5,100\n1,10,5,90\n")
    assert clicks(load("ml-100k", tmp_path)) == [(1, 10), (1, 20), (1, 30)]


def test_ml_1m_joins_its_two_parts_and_finds_titles_through_the_item_map(tmp_path):
    (tmp_path / "train.txt").write_text("0 1 0\n1 2\n")
    (tmp_path / "test.txt").write_text("0 2\n1 1\n")
    (tmp_path / "item_map.txt").write_text("70 0\n80 1\n90 2\n")
    (tmp_path / "movies.dat").write_text("70::A (1990)::Drama\n80::B (2000)::Drama|War\n90::C::War\n")
    log = load("ml-1m", tmp_path)
    assert clicks(log) == [(0, 1), (0, 0), (0, 2), (1, 2), (1, 1)]
    assert log.times_C is None
    assert log.item_titles == ("A", "B", "C")
    assert log.item_features_IF.tolist() == [[1, 0, -1], [1, 1, 1], [0, 1, 0]]


def test_amazon_gives_each_domain_its_own_items(tmp_path):
    for folder, train, test in (
        ("sport_cloth", "0\t5\t1\n1\t5\t1\n", "0\t7\t1\n"),
        ("cloth_sport", "0\t5\t1\n", "1\t5\t1\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.txt").write_text(train)
        (tmp_path / folder / "test.txt").write_text(test)
    log = load("amazon-sport-cloth", tmp_path)
    assert log.item_ids.tolist() == ["sport:5", "sport:7", "cloth:5"]
    assert [log.items_of(user).tolist() for user in (0, 1)] == [[0, 2, 1], [0, 2]]
    assert log.domains_C.tolist() == [0, 1, 0, 0, 1]
    assert log.domain_names == ("sport", "cloth")


def test_citeulike_numbers_articles_by_line_and_reads_their_words(tmp_path):
    (tmp_path / "users.dat").write_text("2 0 3\n1 1\n")
    (tmp_path / "mult.dat").write_text("2 0:1 1:2\n1 0:1\n1 2:1\n2 1:1 2:4\n")
    log = load("citeulike-t", tmp_path)
    assert clicks(log) == [(0, 0), (0, 3), (1, 1)]
    assert log.num_items == 4
    assert log.item_features_IF.shape == (4, 2)
    assert (log.item_features_IF**2).mean() == pytest.approx(1.0)


BAD_FILES = [
    ("ml-100k", {"u.data": "1\t2\t3\t4\n1\tx\t3\n"}, "u.data, line 2"),
    ("ml-100k", {"u.data": "1\t2\t3\t-4\n"}, "line 1: timestamp is '-4', expected a time of at least 0"),
    ("ml-100k", {"ml-100k.inter": "user_id:token\titem_id:token\n1\t2\n"}, "no column 'rating:float' for 'rating'"),
    ("ml-100k", {"readme": "x"}, "neither u.data nor ml-100k.inter"),
    ("ml-1m", {"train.txt": "0 1\n0 a\n", "test.txt": "0 1\n"}, "train.txt, line 2: '0 a', expected a user and"),
    ("ml-1m", {"train.txt": "0 1\n"}, "test.txt: no such file"),
    ("ml-1m", {"train.txt": "0 1\n", "test.txt": ""}, "test.txt: empty file"),
    ("ml-1m", {"train.txt": "0 1 -2\n", "test.txt": "0 1\n"}, "train.txt, line 1: negative number -2"),
    ("citeulike-t", {"users.dat": "2 1 2\n3 1 2\n"}, "users.dat, line 2: count and items disagree"),
    ("citeulike-t", {"users.dat": "1 0\n", "mult.dat": "1 0:1\n2 0:1\n"}, "mult.dat, line 2"),
    ("amazon-sport-cloth", {"sport_cloth/train.txt": "0\tx\t1\n"}, "line 1: item is 'x', expected a whole number"),
]


@pytest.mark.parametrize(("dataset", "files", "expected"), BAD_FILES)
def test_a_bad_file_names_itself_the_line_and_what_was_expected(tmp_path, dataset, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        load(dataset, tmp_path)
    assert expected in str(error.value)


# Sizes: README.md of the folder of real logs.
REAL_SIZES = {
    "ml-100k": (943, 1682, 100_000, 20),
    "ml-1m": (6040, 3260, 998_539, 19),
    "citeulike-t": (7947, 25_975, 134_860, 64),
    "amazon-sport-cloth": (9928, 30_796 + 39_008, 92_612 + 87_829 + 8_326 + 7_540, 0),
}


@pytest.mark.parametrize("dataset", REAL_SIZES)
def test_a_real_log_has_the_size_that_its_readme_gives(shared_data, dataset):
    log = load(dataset, shared_data / dataset)
    num_features = 0 if log.item_features_IF is None else log.item_features_IF.shape[1]
    assert (log.num_users, log.num_items, len(log), num_features) == REAL_SIZES[dataset]
    assert log.report.duplicates_dropped == 0
    assert log.item_features_IF is None or np.isfinite(log.item_features_IF).all()


def test_toy_story_is_a_comedy_of_1995(shared_data):
    log = load("ml-100k", shared_data / "ml-100k")
    names, row = log.feature_names, log.item_features_IF[0]
    assert log.item_titles[0] == "Toy Story"
    assert {name for name, value in zip(names[:-1], row, strict=False) if value} == {
        "Animation",
        "Children's",
        "Comedy",
    }
