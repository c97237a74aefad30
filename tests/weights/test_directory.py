# SPDX-License-Identifier: Apache-2.0
"""Model directories: damage is found, nothing is lost, nothing is executed."""

import json
import os
import pickle
import random

import pytest
import torch

from foundling.errors import BusyError, OutputError, WeightsError
from foundling.models import build, family
from foundling.weights.directory import MANIFEST, check, load, save
from foundling.weights.files import lock, publish, write_bytes, write_directory


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


def test_damaged_weights_never_load_as_something_else(model_dir) -> None:
    """Whatever 200 mutations of the header do: a WeightsError, or a model of the declared shapes."""
    file = model_dir / "model.safetensors"
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    shapes = [p.shape for p in load(model_dir).parameters()]
    chance, refused = random.Random(1), 0
    for _ in range(200):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(header)] = chance.randrange(256)
        file.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            assert [p.shape for p in load(model_dir).parameters()] == shapes
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 150


def test_a_pickle_is_named_and_not_opened(model_dir, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (model_dir / "model.safetensors").unlink()
    (model_dir / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle"):
        load(model_dir)
    assert not (tmp_path / "executed").exists()


def test_tensors_missing_extra_or_ill_shaped_are_named(model_dir) -> None:
    from safetensors.torch import load_file, save_file

    file = model_dir / "model.safetensors"
    tensors = load_file(file)
    changes = {
        "lacks tensor 'model.norm.weight'": {k: v for k, v in tensors.items() if k != "model.norm.weight"},
        "unknown tensor 'model.nrom.weight'; did you mean 'model.norm.weight'": tensors
        | {"model.nrom.weight": torch.ones(3)},
        r"'model.norm.weight' is \[5\]": tensors | {"model.norm.weight": torch.ones(5)},
    }
    for message, changed in changes.items():
        save_file(changed, file)
        with pytest.raises(WeightsError, match=message):
            load(model_dir)


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


def test_publish_puts_the_named_file_last(tmp_path) -> None:
    source, target = tmp_path / "staging", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for name in ("a", "m", "z"):
        (source / name).write_bytes(b"x")
    publish(source, target, "a")
    assert sorted(p.name for p in target.iterdir()) == ["a", "m", "z"] and not source.exists()


def test_one_writer_a_directory(tmp_path) -> None:
    with lock(tmp_path), pytest.raises(BusyError, match="another process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass
