"""Freed memory is kept where the C library can be told so, and nothing happens elsewhere."""

import ctypes
from types import SimpleNamespace

import pytest

from runs.training import keep_freed_memory


def test_the_thresholds_of_glibc_are_raised(monkeypatch):
    told = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=told.__setitem__))
    keep_freed_memory()
    mmap, trim, top_pad = -3, -1, -2  # malloc.h
    assert told == {mmap: 32 * 2**20, trim: 2**31 - 1, top_pad: 64 * 2**20}


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_without_glibc_nothing_happens(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory()


def test_it_can_be_called_here():
    keep_freed_memory()
