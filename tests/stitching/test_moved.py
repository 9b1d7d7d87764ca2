"""Modules that were moved are found by their old names, with a warning that says the new one."""

import sys
import warnings
from importlib import import_module

import pytest

from suture_stitching import moved


@pytest.mark.parametrize("old", sorted(moved._MOVED))
def test_an_old_name_is_the_new_module(old):
    name, new = f"suture_stitching.{old}", moved._MOVED[old]
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=new.replace(".", r"\.")):
        found = import_module(name)
    assert found is import_module(new)
    sys.modules.pop(name)


def test_from_imports_work_too():
    sys.modules.pop("suture_stitching.errors", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from suture_stitching.errors import SutureError  # type: ignore[import-not-found]
    from suture_contract.errors import SutureError as new

    assert SutureError is new


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        import_module("suture_stitching.never")
