"""Scans that are kept: used for the same file, never for another."""

import os
import time

import pytest

from llama_jax.data import scan_cache, textfiles

LINES = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.fixture
def scanned(monkeypatch):
    """Paths that were read."""
    paths, scan = [], textfiles.scan

    def count(path):
        paths.append(path)
        return scan(path)

    monkeypatch.setattr(textfiles, "scan", count)
    return paths


def write(path, content, age):
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))


def test_a_file_is_scanned_once(tmp_path, scanned):
    path, cache = tmp_path / "a.jsonl", str(tmp_path / "cache")
    write(path, LINES, age=3600)
    first = scan_cache.scan(path, cache)
    assert scan_cache.scan(path, cache) == first == textfiles.scan(path)
    assert scanned == [path, path]  # the second is that of the comparison
    other = tmp_path / "b.jsonl"
    write(other, LINES, age=3600)
    assert scan_cache.scan(other, cache).chunks[0].path == str(other)


@pytest.mark.parametrize(("content", "age"), [(LINES + LINES, 3600), (LINES.upper(), 1800)])
def test_a_file_that_changed_is_scanned_again(tmp_path, scanned, content, age):
    path, cache = tmp_path / "a.jsonl", str(tmp_path / "cache")
    write(path, LINES, age=3600)
    before = scan_cache.scan(path, cache)
    write(path, content, age)
    assert scan_cache.scan(path, cache).digest == textfiles.scan(path).digest != before.digest


def test_a_file_that_was_just_written_may_change_again(tmp_path, scanned):
    path, cache = tmp_path / "a.jsonl", str(tmp_path / "cache")
    write(path, LINES, age=0)
    scan_cache.scan(path, cache)
    scan_cache.scan(path, cache)
    assert scanned == [path, path]


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"digest": "0", "chunks": [[1]]}'])
def test_a_kept_scan_that_is_damaged_is_made_again(tmp_path, scanned, damage):
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    write(path, LINES, age=3600)
    first = scan_cache.scan(path, str(cache))
    (kept,) = cache.rglob("*.json")
    kept.write_bytes(damage)
    assert scan_cache.scan(path, str(cache)) == first
    assert len(scanned) == 2


def test_a_cache_that_cannot_be_written_costs_a_scan(tmp_path, scanned):
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    write(path, LINES, age=3600)
    cache.write_text("a file")
    assert scan_cache.scan(path, str(cache)) == scan_cache.scan(path, str(cache))
    assert scanned == [path, path]
