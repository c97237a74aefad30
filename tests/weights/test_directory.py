# SPDX-License-Identifier: Apache-2.0
"""Model directories: damage is found, nothing is lost, nothing is executed."""

import errno
import hashlib
import json
import os
import random
import threading

import pytest
from torch import nn

from foundling.errors import BusyError, ConfigError, OutputError, WeightsError
from foundling.models import build, family, family_of
from foundling.runtime.files import lock, publish, write_bytes, write_directory
from foundling.weights.directory import load, save
from foundling.weights.manifest import MANIFEST, check


@pytest.fixture
def model_dir(tmp_path):
    model = build("llama", **family("llama").module.sized(64, 32, 32, 1))
    return save(model, tmp_path / "model")


def test_every_flipped_byte_and_cut_is_detected(model_dir) -> None:
    assert check(model_dir)["ok"]
    chance = random.Random(0)
    for name in ("model.safetensors", "config.json"):
        file = model_dir / name
        good = file.read_bytes()
        for _ in range(40):
            at = chance.randrange(len(good))
            file.write_bytes(good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :])
            found = check(model_dir)
            assert not found["ok"] and found["problems"][0].startswith(name)
        for length in (0, 1, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:length])
            assert not check(model_dir)["ok"]
        file.unlink()
        assert check(model_dir)["problems"] == [f"{name}: missing"]
        file.write_bytes(good)
    assert check(model_dir)["ok"]


def test_a_newer_format_is_refused_by_name(model_dir) -> None:
    manifest = json.loads((model_dir / MANIFEST).read_text())
    (model_dir / MANIFEST).write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(WeightsError, match="99 is newer"):
        check(model_dir)


def test_names_that_point_outside_are_not_followed(model_dir) -> None:
    manifest = json.loads((model_dir / MANIFEST).read_text())
    manifest["files"]["../../secret"] = "0" * 64
    (model_dir / MANIFEST).write_text(json.dumps(manifest))
    assert "points outside" in check(model_dir)["problems"][0]


def test_saving_over_something_is_refused_and_leaves_it(model_dir) -> None:
    with pytest.raises(OutputError, match="not empty"):
        save(load(model_dir), model_dir)
    assert check(model_dir)["ok"]


def test_a_failed_write_leaves_what_was_there(tmp_path) -> None:
    write_bytes(tmp_path / "file", b"old")

    def fail(aside) -> None:
        (aside / "half").write_bytes(b"x")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        write_directory(tmp_path / "new", fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_publish_moves_the_named_files_last_and_never_over_another_file(tmp_path) -> None:
    source, target = tmp_path / "staging", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for name in ("a", "m", "z"):
        (source / name).write_bytes(b"x")
    hashes = dict.fromkeys("amz", hashlib.sha256(b"x").hexdigest())
    (target / "m").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"out/m: is not of this run.*move it away"):
        publish(source, target, hashes, last=("z", "a"))
    assert (target / "m").read_bytes() == b"mine" and len(list(source.iterdir())) == 3
    (target / "m").write_bytes(b"x")  # as moved by a process that was killed before it removed the other name
    publish(source, target, hashes, last=("z", "a"))
    assert sorted(p.name for p in target.iterdir()) == ["a", "m", "z"] and not any(source.iterdir())


def test_one_writer_a_directory(tmp_path) -> None:
    with lock(tmp_path), pytest.raises(BusyError, match="another process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


class OwnLlama(family("llama").model):
    """A family with a method of the user's own."""

    def mean(self, x):
        return self(x).hidden.mean(1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_without(tmp_path, monkeypatch, number) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock(tmp_path) as locked:
        write_bytes(tmp_path / "x", b"whole")
    assert not locked
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_lock_that_fails_otherwise_is_one_line(tmp_path, monkeypatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    refused = pytest.raises(OutputError, match=r"cannot be locked \(Input/output error\); choose another --out")
    with refused, lock(tmp_path):
        pass


def test_threads_that_write_one_file_do_not_remove_what_another_writes(tmp_path) -> None:
    errors: list[Exception] = []

    def write(value: int) -> None:
        try:
            for _ in range(40):
                write_bytes(tmp_path / "x", bytes([value]) * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = (tmp_path / "x").read_bytes()
    assert not errors and len(data) == 1000 and len(set(data)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_subclass_of_a_family_is_saved_as_that_family(tmp_path) -> None:
    config = family("llama").config(**family("llama").module.sized(64, 32, 32, 1))
    save(OwnLlama(config), tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is family("llama").model and loaded.config == config
    with pytest.raises(ConfigError, match="Linear is not a family"):
        family_of(nn.Linear(2, 2))
