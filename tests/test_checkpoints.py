"""A checkpoint is whole or does not exist, and a damaged one is refused by name."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError

from flowgen import checkpoints
from flowgen.core import InputError
from flowgen.training.checkpoints import file_hash, find, load, read_tensors, save, write_tensors


@pytest.fixture
def tensors(normal):
    return {
        "double": normal("a", 3, 4),
        "single": normal("b", 100).float(),
        "half": normal("c", 7).half(),
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(12345678901),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
        "bits": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def identical(left, right):
    """Names, types, shapes and every bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name]
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        .equal(right[name].contiguous().view(-1).view(torch.uint8))
        for name in left
    )


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def full_disk(write):
    """A save_file that writes a part and then finds the disk full."""

    def failing(tensors, path, metadata=None):
        path.write_bytes(b"part")
        raise write

    return failing


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
FAILURES = [NO_SPACE, SafetensorError("I/O error: no space left"), KeyboardInterrupt()]


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path, tensors):
    assert identical(load(save(tmp_path / "new" / "folder", 7, tensors, keep=1)), tensors)


def test_checkpoints_are_found_from_the_oldest_to_the_newest(tmp_path, tensors):
    for step in (5, 100, 20, 123_456_789):
        save(tmp_path, step, tensors, keep=10)
    assert [int(found.name.removeprefix("step-")) for found in find(tmp_path)] == [5, 20, 100, 123_456_789]
    assert find(tmp_path / "missing") == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, tensors, keep):
    for step in range(1, 6):
        save(tmp_path, step, {**tensors, "step": torch.tensor(step)}, keep)
        assert len(find(tmp_path)) == min(step, keep)
    assert [load(found)["step"].item() for found in find(tmp_path)] == list(range(6 - keep, 6))
    assert len(names(tmp_path)) == keep


def test_a_checkpoint_saved_again_is_the_later_one(tmp_path, tensors):
    save(tmp_path, 5, tensors, keep=2)
    again = save(tmp_path, 5, {"other": torch.ones(2)}, keep=2)
    assert identical(load(again), {"other": torch.ones(2)})
    assert names(tmp_path) == ["step-000000005"]


def test_other_users_may_read_a_checkpoint(tmp_path, tensors):
    saved = save(tmp_path, 5, tensors, keep=2)
    assert saved.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o644}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def other_checksum(file):
    file.write_text(json.dumps({"step": 2, "sha256": "0" * 64}))


def not_a_table(file):
    file.write_text("[1, 2]")


DAMAGES = [
    *[(damage, "state.safetensors") for damage in (flip_a_bit, truncate, remove, empty)],
    *[(damage, "state.json") for damage in (truncate, remove, empty, other_checksum, not_a_table)],
]


@pytest.mark.parametrize(("damage", "file"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, tensors, damage, file):
    for step in (1, 2, 3):
        save(tmp_path, step, tensors, keep=3)
    damaged = tmp_path / "step-000000002"
    damage(damaged / file)
    with pytest.raises(InputError, match=r"step-000000002 is damaged.*go on from step-000000001"):
        load(damaged)
    assert identical(load(tmp_path / "step-000000003"), tensors)
    save(tmp_path, 4, tensors, keep=4)


def test_a_damaged_checkpoint_without_one_before_says_so(tmp_path, tensors):
    saved = save(tmp_path, 1, tensors, keep=1)
    save(tmp_path, 2, tensors, keep=2)
    flip_a_bit(saved / "state.safetensors")
    with pytest.raises(InputError, match="none before it"):
        load(saved)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_save_that_fails_leaves_what_was_there(tmp_path, tensors, monkeypatch, failure):
    for step in (1, 2):
        save(tmp_path, step, tensors, keep=2)
    monkeypatch.setattr(checkpoints, "save_file", full_disk(failure))
    for step in (2, 3):
        with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OSError):
            save(tmp_path, step, tensors, keep=2)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    assert all(identical(load(found), tensors) for found in find(tmp_path))


def test_a_failed_save_leaves_no_half_checkpoint(tmp_path, tensors, monkeypatch):
    def unreadable(path):
        raise NO_SPACE

    monkeypatch.setattr(checkpoints, "file_hash", unreadable)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 1, tensors, keep=2)
    assert names(tmp_path) == []


def test_what_an_interrupted_save_left_is_no_checkpoint(tmp_path, tensors):
    (tmp_path / ".building-x").mkdir()
    save(tmp_path, 1, tensors, keep=1)
    assert [found.name for found in find(tmp_path)] == ["step-000000001"]


# single files


def test_tensors_and_metadata_come_back(tmp_path, tensors):
    path, metadata = tmp_path / "model.safetensors", {"config": '{"a": 1}', "größe": "1"}
    write_tensors(path, tensors, metadata)
    again, seen = read_tensors(path)
    assert identical(again, tensors)
    assert seen == metadata
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, tensors, monkeypatch, failure):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, {})
    before = file_hash(path)
    monkeypatch.setattr(checkpoints, "save_file", full_disk(failure))
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OSError):
        write_tensors(path, {"other": torch.ones(2)}, {})
    assert file_hash(path) == before
    assert names(tmp_path) == ["model.safetensors"]


def test_a_new_file_replaces_the_old_one(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, {"round": "1"})
    write_tensors(path, {"other": torch.ones(2)}, {})
    assert identical(read_tensors(path)[0], {"other": torch.ones(2)})
    assert read_tensors(path)[1] == {}
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("damage", [truncate, empty, remove])
def test_a_file_that_is_no_safetensors_file_is_refused_by_name(tmp_path, tensors, damage):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, {})
    damage(path)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_tensors(path)


def test_a_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
