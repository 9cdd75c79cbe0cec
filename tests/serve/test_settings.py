"""Who is let in: addresses, names and keys."""

import pytest

from llama_jax.config import InputError
from llama_jax.serve.settings import Settings, read_keys

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_an_address_that_others_reach_needs_keys(host, tmp_path):
    with pytest.raises(InputError, match=r"can be reached from other machines.*--api-key-file"):
        Settings(name="m", host=host)
    path = tmp_path / "keys"
    path.write_text(f"# mine\n\n{KEY}\n")
    path.chmod(0o600)
    settings = Settings(name="m", host=host, keys=read_keys(str(path)))
    assert not settings.local
    assert settings.is_called("any.example:80")
    assert settings.key_of(f"Bearer {KEY}") == settings.keys[0]
    assert settings.key_of(f"bearer  {KEY} ") == settings.keys[0]
    for header in ("", KEY, f"Basic {KEY}", "Bearer ", f"Bearer {KEY}x", "Bearer é"):
        assert settings.key_of(header) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.3.2.1"])
def test_this_machine_alone_needs_none(host):
    settings = Settings(name="m", host=host)
    assert settings.local
    for name in ("localhost:8000", "[::1]:8000", "127.0.0.1", "localhost:9000"):
        assert settings.is_called(name)
    for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::1"):
        assert not settings.is_called(name)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (KEY, 0o644, r"can be read by others \(mode 644\)"),
        ("# nothing\n", 0o600, "holds no key"),
        ("short\n", 0o600, "a key of 5 characters"),
    ],
)
def test_a_file_of_keys_that_protects_nothing_is_refused(content, mode, said, tmp_path):
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(InputError, match=said):
        read_keys(str(path))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"port": 65536}, "port=65536 is out of range"),
        ({"port": -1}, "port=-1 is out of range"),
        ({"queue": 0}, "queue=0 is out of range"),
        ({"deadline_seconds": -1.0}, "deadline_seconds=-1.0"),
        ({"drain_seconds": float("nan")}, "drain_seconds=nan"),
    ],
)
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        Settings(name="m", **wrong)
