import pytest

import dlsr


def test_every_public_name_resolves():
    for name in dlsr.__all__:
        assert getattr(dlsr, name) is not None
    assert sorted(dlsr.__all__) == dir(dlsr)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = dlsr.nothing


def test_all_public_errors_are_dlsr_errors():
    errors = {name for name in dlsr.__all__ if name.endswith("Error")}
    assert "SettingsError" in errors
    assert all(issubclass(getattr(dlsr, name), dlsr.DlsrError) for name in errors)
