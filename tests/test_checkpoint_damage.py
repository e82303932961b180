"""Checkpoints that were damaged in whatever way are never taken for good, and it is said which file is damaged and why."""

import hashlib
import json
import shutil
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch import CheckpointError, ModelFileError, ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.checkpoint.object_state import capture_generators, restore_generators
from sb3_ddpg_scratch.checkpoint.replay_segments import LARGEST_JOINED, SegmentLog, head_of, layout_of, restore_buffer
from sb3_ddpg_scratch.checkpoint.serialization import Encoder, NotDataError, decode
from sb3_ddpg_scratch.checkpoint.storage import MANIFEST, STATE, newest_whole, read_checkpoint

CASES = {"max_examples": 500, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, each with a segment of its own and one that they share."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {"learning_starts": 10, "batch_size": 4, "buffer_size": 500, "policy_kwargs": {"net_arch": [2]}, "seed": 0}
    model = ScratchDDPG("MlpPolicy", make_vec_env("Pendulum-v1", seed=0), updater="analytic", **made)
    with pytest.MonkeyPatch.context() as patch:
        # Neighbours that are not joined, as if they were large.
        patch.setattr("sb3_ddpg_scratch.checkpoint.replay_segments.LARGEST_JOINED", 0)
        model.learn(60, callback=ResumableCheckpoint(folder, every=20, keep=2))
    assert LARGEST_JOINED > 0
    return folder


def files_of(checkpoint):
    """All the files that a checkpoint needs, its own first."""
    _, _, body = (checkpoint / MANIFEST).read_bytes().partition(b"\n")
    segments = [checkpoint.parent / "segments" / entry["name"] for entry in json.loads(body)["segments"]]
    return [*sorted(checkpoint.iterdir()), *segments]


def expect_refusal(folder, damaged):
    """The newest checkpoint is refused with the file's name; an older one is taken if it does not need that file."""
    older, newest = sorted(folder.glob("step_*"))
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(newest)
    assert damaged.name in str(refused.value)
    assert len(refused.value.problem) > 10
    if damaged in files_of(older):
        with pytest.raises(CheckpointError, match="no checkpoint that is whole"):
            newest_whole(folder)
    else:
        checkpoint, skipped = newest_whole(folder)
        assert checkpoint.folder == older
        assert [problem.path for problem in skipped] == [refused.value.path]


class Damaged:
    """A file with other bytes, for a while."""

    def __init__(self, file: Path, content: bytes | None):
        self.file, self.content, self.before = file, content, file.read_bytes()

    def __enter__(self):
        self.file.unlink()
        if self.content is not None:
            self.file.write_bytes(self.content)

    def __exit__(self, *_):
        self.file.write_bytes(self.before)


def test_undamaged_ones_are_taken(folder):
    newest = sorted(folder.glob("step_*"))[-1]
    assert newest_whole(folder)[0].folder == newest
    assert newest_whole(newest)[1] == []
    # Three segments, of which the older checkpoint has two: only new rows were written.
    assert [len(read_checkpoint(path).segments) for path in sorted(folder.glob("step_*"))] == [2, 3]


@settings(**CASES)
@given(st.data())
def test_flipped_bits(folder, data):
    file = data.draw(st.sampled_from(files_of(sorted(folder.glob("step_*"))[-1])))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    if bytes(content) == file.read_bytes():
        return
    with Damaged(file, bytes(content)):
        # The manifest says which segments are needed: it is looked at undamaged.
        expected = file
        if file.name == MANIFEST:
            with pytest.raises(CheckpointError, match=MANIFEST):
                read_checkpoint(file.parent)
            assert newest_whole(folder)[0].folder == sorted(folder.glob("step_*"))[0]
        else:
            expect_refusal(folder, expected)


@settings(**CASES)
@given(st.data())
def test_cut_off_longer_or_missing(folder, data):
    file = data.draw(st.sampled_from(files_of(sorted(folder.glob("step_*"))[-1])))
    content = file.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "longer", "missing", "zeros"]))
    changed = {
        "cut": content[: data.draw(st.integers(0, len(content) - 1))],
        "longer": content + data.draw(st.binary(min_size=1, max_size=20)),
        "missing": None,
        "zeros": bytes(len(content)),
    }[kind]
    with Damaged(file, changed):
        if file.name == MANIFEST:
            with pytest.raises(CheckpointError, match=MANIFEST):
                read_checkpoint(file.parent)
        else:
            expect_refusal(folder, file)


@settings(**CASES | {"max_examples": 300})
@given(st.data())
def test_mixed_up(folder, data):
    """A file, whole in itself, that is another one's: of the other checkpoint, or of the same."""
    older, newest = sorted(folder.glob("step_*"))
    mine = files_of(newest)
    file = data.draw(st.sampled_from(mine))
    other = data.draw(st.sampled_from([*mine, *files_of(older)]))
    if other.read_bytes() == file.read_bytes():
        return
    with Damaged(file, other.read_bytes()):
        if file.name == MANIFEST:
            with pytest.raises(CheckpointError, match=MANIFEST):
                read_checkpoint(newest)
        else:
            expect_refusal(folder, file)


def test_a_folder_with_another_name(folder, tmp_path):
    copied = tmp_path / "all"
    shutil.copytree(folder, copied)
    newest = sorted(copied.glob("step_*"))[-1]
    newest.rename(copied / "step_000000999999")
    checkpoint, skipped = newest_whole(copied)
    assert checkpoint.step == 40
    assert "belongs to another checkpoint" in str(skipped[0])
    with pytest.warns(UserWarning, match=r"Skipped.*manifest\.json.*belongs"):
        ScratchDDPG.resume(copied, make_vec_env("Pendulum-v1", seed=0))


def forge(folder, tmp_path, change):
    """A copy whose state was changed, and all of its hashes with it."""
    copied = tmp_path / "forged"
    shutil.copytree(folder, copied)
    newest = sorted(copied.glob("step_*"))[-1]
    content = json.loads((newest / STATE).read_text())
    change(content)
    text = json.dumps(content).encode()
    (newest / STATE).write_bytes(text)
    _, _, body = (newest / MANIFEST).read_bytes().partition(b"\n")
    manifest = json.loads(body)
    manifest["files"][STATE] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    body = json.dumps(manifest)
    (newest / MANIFEST).write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
    return newest


def entry(tree, key):
    return next(pair for pair in tree["dict"] if pair[0] == key)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["arrays"].clear(),
        lambda content: content["arrays"][0].update(shape=[10**9]),
        lambda content: content["arrays"][0].update(dtype="O"),
        lambda content: content["arrays"][0].update(shape=[-1]),
        lambda content: content.update(state={"code": "print(1)"}),
        lambda content: content.pop("state"),
        lambda content: entry(content["state"], "policy").__setitem__(1, {"dict": []}),
        lambda content: entry(content["state"], "counters").__setitem__(1, 3),
        lambda content: entry(content["state"], "env").__setitem__(1, {"dict": []}),
        lambda content: entry(content["state"], "optimizers").__setitem__(1, {"dict": [["actor", {"dict": []}]]}),
        lambda content: entry(entry(content["state"], "settings")[1], "policy").__setitem__(
            1, {"dict": [["class", "os:system"]]}
        ),
    ],
)
def test_a_forged_state_ends_in_an_error_of_ours(folder, tmp_path, change):
    newest = forge(folder, tmp_path, change)
    with pytest.raises(CheckpointError, match=r"step_000000000060"):
        ScratchDDPG.resume(newest, make_vec_env("Pendulum-v1", seed=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda buffer, head: buffer.rows.__setitem__((5, 2), np.nan), r"key 'rows'.*finite, and at \(5, 2\) is nan"),
        (lambda buffer, head: buffer._ends.__setitem__(7, 9), "key '_ends'.*from 0 to 2"),
        (lambda buffer, head: buffer._aside.__setitem__(7, 10**6), "key '_aside'.*from 0 to 64"),
        (lambda buffer, head: head.update(pos=-1), "key 'pos'.*whole number from 0 to 79, and is -1"),
        (lambda buffer, head: head.update(pos=3), r"at \(3, False\), which is not after 60 time steps"),
        (lambda buffer, head: head.update(full=0), "key 'full'"),
        (lambda buffer, head: head["row"].update(rows=np.zeros(3)), r"key 'row/rows'.*shape \(7\)"),
        (lambda buffer, head: head["row"].pop("_ends"), "key 'row/_ends': it is missing"),
        (lambda buffer, head: head.update(_free_places=[99]), "key '_free_places'"),
        (lambda buffer, head: head.update(_last_observations=np.zeros((64, 9))), "key '_last_observations'"),
    ],
)
def test_a_forged_buffer_is_not_restored(tmp_path, change, message):
    made = {"buffer_size": 80, "learning_starts": 99, "optimize_memory_usage": True, "policy_kwargs": {"net_arch": [2]}}
    models = [ScratchDDPG("MlpPolicy", make_vec_env("Point-v0", seed=0), **made) for _ in range(2)]
    buffer, head = models[0].learn(60).replay_buffer, None
    for forged in (False, True):
        head = head_of(buffer)
        if forged:
            change(buffer, head)
        log = SegmentLog(tmp_path / str(forged))
        log.save(buffer, 60)
        arguments = (models[1].replay_buffer, log.folder, log.segments, log.written, layout_of(buffer), head)
        if forged:
            with pytest.raises((ModelFileError, CheckpointError), match=message):
                restore_buffer(*arguments)
        else:
            restore_buffer(*arguments)
            np.testing.assert_array_equal(models[1].replay_buffer.rows, buffer.rows)


# ----------------------------------------------------------------------------------------------------------------- Data

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
trees = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, 3))
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_data_comes_back_as_it_was(value):
    encoder = Encoder()
    tree = json.loads(json.dumps(encoder.encode(value)))
    # repr() tells types, signs of zeros, and NaNs.
    assert repr(decode(tree, encoder.arrays)) == repr(value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool, ">f4", "U3"])
def test_arrays_come_back_as_they_were(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = OrderedDict(a=array, again=array, scalar=np.float32(2.5), empty=array[:0])
    encoder = Encoder()
    back = decode(encoder.encode(value), encoder.arrays)
    assert type(back) is OrderedDict
    assert back["a"] is back["again"]
    assert all(np.array_equal(back[name], value[name]) and back[name].dtype == value[name].dtype for name in value)


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16, th.int64, th.bool])
def test_tensors_come_back_as_they_were(dtype):
    for tensor in (th.arange(6).reshape(2, 3).to(dtype), th.tensor(1).to(dtype)):
        encoder = Encoder()
        back = decode(encoder.encode(tensor), encoder.arrays)
        assert back.dtype == dtype
        assert th.equal(back, tensor)


def test_generators_come_back_as_they_were():
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox):
        generator = np.random.Generator(kind(3))
        generator.standard_normal(5)
        encoder = Encoder()
        tree = json.loads(json.dumps(encoder.encode(generator)))
        back = decode(tree, encoder.arrays)
        assert back.standard_normal() == generator.standard_normal()


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1, 2}, print, [lambda: 0], type("X", (int,), {})(3)])
def test_what_is_more_than_data_is_refused(value):
    with pytest.raises(NotDataError, match="more than data"):
        Encoder().encode(value)


@pytest.mark.parametrize("position", [-1, 10**6])
def test_positions_beyond_a_generators_numbers_are_refused(position):
    """NumPy would read memory there."""
    old = np.random.RandomState(1).get_state()
    twister, philox = np.random.MT19937(1).state, np.random.Philox(1).state
    twister["state"]["pos"] = philox["buffer_pos"] = position
    contents = {"random_state": (*old[:2], position, *old[3:])}
    for kind, state in [*contents.items(), ("generator", twister), ("generator", philox)]:
        encoder = Encoder()
        tree = {kind: encoder.encode(state)}
        with pytest.raises(ValueError, match="a generator's position"):
            decode(tree, encoder.arrays)
    with pytest.raises(ValueError, match="a generator's position"):
        restore_generators(capture_generators(th.device("cpu")) | {"numpy": contents["random_state"]}, th.device("cpu"))
