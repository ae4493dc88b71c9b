"""Any log, and what a bad one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fedquilt.config import DataConfig
from fedquilt.errors import DataError, UnknownNameError
from fedquilt.graphs.datasets import LOADERS, load_log
from fedquilt.graphs.log import InteractionLog


def generic(path: Path, text: str, **columns: str) -> InteractionLog:
    path.write_text(text)
    return load_log(DataConfig(dataset="generic", path=str(path), columns=columns))


def refusal(path: Path, text: str, **columns: str) -> str:
    with pytest.raises(DataError) as error:
        generic(path, text, **columns)
    return str(error.value)


def test_the_six_loaders_are_found_by_name():
    assert {"amazon-sport-cloth", "bazaar", "citeulike-t", "generic", "ml-100k", "ml-1m"} <= set(LOADERS)


def test_an_unknown_dataset_names_its_neighbour():
    with pytest.raises(UnknownNameError, match="ml-100k"):
        load_log(DataConfig(dataset="ml-100"))


def test_clicks_are_ordered_by_user_then_time_then_row(tmp_path):
    log = generic(tmp_path / "log.csv", "user,item,timestamp\nb,x,9\na,y,5\na,x,5\na,z,1\n")
    assert [(log.user_ids[u], log.item_ids[i]) for u, i in zip(log.users_C, log.items_C, strict=True)] == [
        ("a", "z"),
        ("a", "y"),
        ("a", "x"),
        ("b", "x"),
    ]
    assert log.times_C.tolist() == [1, 5, 5, 9]


def test_whole_number_ids_are_ordered_as_numbers(tmp_path):
    log = generic(tmp_path / "log.csv", "user,item,timestamp\n10,1,1\n9,1,1\n")
    assert log.user_ids.tolist() == [9, 10]


def test_a_repeated_click_keeps_the_first_and_is_counted(tmp_path):
    log = generic(tmp_path / "log.csv", "user,item,timestamp\na,x,7\na,x,3\na,y,5\na,x,3\n")
    assert log.times_C.tolist() == [3, 5]
    assert (log.report.rows_read, log.report.duplicates_dropped) == (4, 2)


def test_users_with_one_item_are_kept_and_counted(tmp_path):
    log = generic(tmp_path / "log.csv", "user,item,timestamp\na,x,1\na,y,2\nb,x,3\n")
    assert (log.num_users, log.report.one_item_users) == (2, 1)


def test_tsv_with_renamed_columns_domains_and_ratings(tmp_path):
    text = "who\twhat\twhen\tdomain\trating\n1\t2\t3\tbooks\t4.5\n1\t3\t4\tmusic\t2\n"
    log = generic(tmp_path / "log.tsv", text, user="who", item="what", timestamp="when")
    assert log.domain_names == ("books", "music")
    assert (log.domains_C.tolist(), log.ratings_C.tolist()) == ([0, 1], [4.5, 2.0])


def test_parquet_reads_like_csv(tmp_path):
    text = "user,item,timestamp,rating\na,x,1,1\nb,y,2,2\na,y,3,3\n"
    csv = generic(tmp_path / "log.csv", text)
    pl.read_csv(tmp_path / "log.csv").write_parquet(tmp_path / "log.parquet")
    parquet = load_log(DataConfig(dataset="generic", path=str(tmp_path / "log.parquet")))
    assert parquet.hash == csv.hash
    assert np.array_equal(parquet.ratings_C, csv.ratings_C)


@pytest.mark.parametrize("written", ["1577836800", "1577836800000", "2020-01-01", "2020-01-01T02:00:00+02:00"])
def test_times_are_seconds_however_they_are_written(tmp_path, written):
    # 2020-01-01T00:00:00Z is 1577836800 seconds after 1970 (date -u -d 2020-01-01 +%s).
    log = generic(tmp_path / "log.csv", f"user,item,timestamp\na,x,{written}\n")
    assert log.times_C.tolist() == [1577836800]


BAD_ROWS = {
    "a missing column": ("user,thing,timestamp\na,x,1\n", "line 1: no column 'item'"),
    "a time that is none": ("user,item,timestamp\na,x,1\na,y,soon\n", "line 3: timestamp is 'soon', expected a number"),
    "a date that is none": (
        "user,item,timestamp\na,x,2020-01-01\na,y,soon\n",
        "line 3: timestamp is 'soon', expected seconds since 1970 or an ISO 8601 date",
    ),
    "a negative time": (
        "user,item,timestamp\na,x,1\na,y,-5\n",
        "line 3: timestamp is '-5', expected a time of at least 0",
    ),
    "an infinite time": ("user,item,timestamp\na,x,inf\n", "line 2: timestamp is 'inf', expected a number"),
    "a missing user": ("user,item,timestamp\n,x,1\n", "line 2: user is missing, expected an id"),
    "a short row": ("user,item,timestamp\na,x,1\na,y\n", "line 3: timestamp is missing, expected a time"),
    "a long row": ("user,item,timestamp\na,x,1\na,y,2,3\n", "line 3: 4 columns, expected 3"),
    "an open quote": ('user,item,timestamp\na,"x,1\n', "line 2: a quote"),
    "a bad rating": ("user,item,timestamp,rating\na,x,1,good\n", "line 2: rating is 'good', expected a number"),
    "a header alone": ("user,item,timestamp\n", "line 2: no rows"),
    "an empty file": ("", "empty file; expected a CSV, TSV or Parquet file with columns user, item, timestamp"),
}


@pytest.mark.parametrize("case", BAD_ROWS, ids=list(BAD_ROWS))
def test_bad_input_names_file_line_and_what_was_expected(tmp_path, case):
    text, expected = BAD_ROWS[case]
    message = refusal(tmp_path / "log.csv", text)
    assert message.startswith(str(tmp_path / "log.csv"))
    assert expected in message
    assert "\n" not in message


def test_a_column_that_the_user_named_must_be_there(tmp_path):
    assert "no column 'stars' for 'rating'" in refusal(
        tmp_path / "log.csv", "user,item,timestamp\na,x,1\n", rating="stars"
    )


def test_an_unknown_name_among_columns_is_refused(tmp_path):
    assert "data.columns.time" in refusal(tmp_path / "log.csv", "user,item,timestamp\na,x,1\n", time="timestamp")


@pytest.mark.parametrize("dataset", ["ml-100k", "ml-1m", "citeulike-t", "amazon-sport-cloth"])
@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_missing_folder_says_which_key_to_set(dataset, path):
    with pytest.raises(DataError, match=r"set data\.path"):
        load_log(DataConfig(dataset=dataset, path=path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such file"):
        load_log(DataConfig(dataset="generic", path=str(tmp_path / "log.csv")))
    with pytest.raises(DataError, match=r"not a file"):
        load_log(DataConfig(dataset="generic", path=str(tmp_path)))


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    assert "not a Parquet file" in refusal(tmp_path / "log.parquet", "user,item,timestamp\na,x,1\n")
