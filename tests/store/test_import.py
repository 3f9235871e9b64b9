"""Features of other programs become a view: the same bits, and one sentence for what is wrong."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError, FeatureFileError, ForeignFeaturesError, StoreError, UnknownTimesError
from pipeline.store import open_view
from pipeline.store.upkeep.care import verify, view_checks
from pipeline.store.upkeep.foreign import foreign_clips
from pipeline.store.upkeep.importing import Times, import_clips
from tests.support.features import frame_times

Arrays = Mapping[str, np.ndarray]
VECTORS = {
    name: np.random.default_rng(number).standard_normal((3 + number, 5)).astype(np.float32)
    for number, name in enumerate(("a", "b", "c"))
}


def import_(path: Path, out: Path, **options: object) -> FeatureContract:
    fields = {"name": "i3d", "origin": {"made_by": "them"}, "times": Times(25), **options}
    return import_clips(foreign_clips(path), out, **fields)  # type: ignore[arg-type]


def assert_imported(out: Path, expected: Arrays) -> None:
    with open_view(out / "i3d") as view:
        assert view.clip_ids() == sorted(expected)
        for name, array in expected.items():
            maps = array if array.ndim == 4 else array[..., None, None]
            assert view.dtype == array.dtype
            np.testing.assert_array_equal(view.read(name), maps)
            np.testing.assert_array_equal(view.frame_seconds(name), frame_times(len(array)))


def write_each(write: Callable[[Path, np.ndarray], object], suffix: str) -> Callable[[Path, Arrays], Path]:
    def write_all(folder: Path, arrays: Arrays) -> Path:
        for name, array in arrays.items():
            write(folder / f"{name}{suffix}", array)
        return folder

    return write_all


def in_one(write: Callable[[Path, Arrays], object], name: str) -> Callable[[Path, Arrays], Path]:
    def write_one(folder: Path, arrays: Arrays) -> Path:
        write(folder / name, arrays)
        return folder / name

    return write_one


def dump_pickle(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def write_datasets(path: Path, arrays: Arrays, *, pattern: str = "{}") -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[pattern.format(name)] = array


WAYS = {
    "npy": write_each(np.save, ".npy"),
    "npz": write_each(lambda path, array: np.savez(path, features=array), ".npz"),
    "pt": write_each(lambda path, array: torch.save(torch.from_numpy(array), path), ".pt"),
    "pkl": write_each(dump_pickle, ".pkl"),
    "newest pkl": write_each(lambda path, array: path.write_bytes(pickle.dumps(array, protocol=5)), ".pkl"),
    "one npz": in_one(lambda path, arrays: np.savez(path, **arrays), "all.npz"),
    "one pt": in_one(
        lambda path, arrays: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path), "all.pt"
    ),
    "one pkl": in_one(dump_pickle, "all.pkl"),
    "one HDF5": in_one(write_datasets, "all.h5"),
    "HDF5 groups": in_one(
        lambda path, arrays: write_datasets(path, arrays, pattern="{}/features"), "all.hdf5"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_file_becomes_a_view_of_equal_bits(tmp_path: Path, way: str) -> None:
    (tmp_path / "files").mkdir()
    import_(WAYS[way](tmp_path / "files", VECTORS), tmp_path / "out")
    assert_imported(tmp_path / "out", VECTORS)


def test_hdf5_with_one_dataset_of_all_clips_is_read_by_its_ids(tmp_path: Path) -> None:
    stacked = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float16)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["features"], file["clip_ids"] = stacked, ["b", "a", "c"]
    import_(tmp_path / "all.h5", tmp_path / "out", axes="TD")
    assert_imported(tmp_path / "out", dict(zip("bac", stacked, strict=True)))


def test_one_array_of_all_clips_has_a_name_and_times_for_each(tmp_path: Path) -> None:
    stacked, path = np.ones((3, 4, 5), np.float32), tmp_path / "all.npz"
    for ids, times, message in (
        ("ab", np.ones((3, 4)), "has 2 names and 3 rows of times for the 3 clips"),
        ("abc", np.ones((2, 4)), "has 3 names and 2 rows of times for the 3 clips"),
        ("aba", np.ones((3, 4)), "several files for a"),
    ):
        np.savez(path, features=stacked, clip_ids=list(ids), frame_seconds=times)
        with pytest.raises(FeatureFileError, match=message):
            import_(path, tmp_path / "out")


def test_hdf5_with_a_group_a_clip_has_its_times_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, array in VECTORS.items():
            file[f"{name}/features"], file[f"{name}/frame_seconds"] = array, frame_times(len(array))
    import_(tmp_path / "all.h5", tmp_path / "out", times=Times())
    assert_imported(tmp_path / "out", VECTORS)


@pytest.mark.parametrize(
    ("axes", "given"), [("DT", None), ("DT", "DT"), ("THWC", "THWC"), ("CTHW", "CTHW"), ("TCHW", None)]
)
def test_axes_are_those_that_the_shapes_tell_or_that_are_given(
    tmp_path: Path, axes: str, given: str | None
) -> None:
    letters = "TD" if "D" in axes else "TCHW"
    sizes = {"D": (5,), "C": (4,), "H": (3,), "W": (2,)}
    arrays = {}
    for number, name in enumerate("ab"):
        shape = [3 + number if letter == "T" else sizes[letter][0] for letter in letters]
        arrays[name] = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
        stored = np.ascontiguousarray(arrays[name].transpose([letters.index(letter) for letter in axes]))
        np.save(tmp_path / f"{name}.npy", stored)
    import_(tmp_path, tmp_path / "out", axes=given)
    assert_imported(tmp_path / "out", arrays)


def test_the_contract_says_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS["a"])
    origin = {"made_by": "them", "made_at": "2019", "known": {"network": "I3D"}}
    contract = import_(tmp_path, tmp_path / "out", origin=origin, axes="TD")
    digest = hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()
    listed = hashlib.sha256(f"a.npy {digest}\n".encode()).hexdigest()
    said = {"axes": "TD", "times": "of the files, or 25 a second from 0 s on", "files_sha256": listed}
    expected = {"tap": "i3d", "dtype": "float32", "foreign": {**origin, **said}}
    assert json.loads(contract.model_dump_json()) == expected
    assert FeatureContract.model_validate(expected) == contract
    assert f"a,a.npy,{digest}\n" in (tmp_path / "out/imported.csv").read_text()
    assert verify(view_checks(tmp_path / "out")) == []
    with open_view(tmp_path / "out/i3d") as view:
        assert view.contract == contract


def test_times_in_a_file_go_before_a_rate(tmp_path: Path) -> None:
    times = np.array([0.5, 0.75, 2])
    np.savez(tmp_path / "a.npz", features=VECTORS["a"], frame_seconds=times)
    np.save(tmp_path / "b.npy", VECTORS["b"])
    np.save(tmp_path / "b.seconds.npy", np.arange(4) * 2.0)
    np.save(tmp_path / "c.npy", VECTORS["c"])
    import_(tmp_path, tmp_path / "out", times=Times(2, first_seconds=1))
    with open_view(tmp_path / "out/i3d") as view:
        assert view.frame_seconds("a").tolist() == times.tolist()
        assert view.frame_seconds("b").tolist() == [0, 2, 4, 6]
        assert view.frame_seconds("c").tolist() == [1, 1.5, 2, 2.5, 3]


def test_float64_and_bfloat16_become_float32(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(VECTORS["a"]).bfloat16(), tmp_path / "a.pt")
    np.save(tmp_path / "b.npy", VECTORS["b"].astype(np.float64))
    import_(tmp_path, tmp_path / "out")
    rounded = torch.from_numpy(VECTORS["a"]).bfloat16().float().numpy()
    assert_imported(tmp_path / "out", {"a": rounded, "b": VECTORS["b"]})


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".npy"])
def test_code_in_a_file_is_never_run(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([Harmful()], dtype=object), allow_pickle=True)
    elif suffix == ".pt":
        torch.save({"a": Harmful()}, path)
    else:
        dump_pickle(path, {"a": VECTORS["a"], "b": Harmful()})
    with pytest.raises(FeatureFileError, match=rf"a\{suffix} can't be read: .*(code|Python objects)"):
        import_(path, tmp_path / "out")
    assert not (tmp_path / "harmed").exists()


def npy(**arrays: np.ndarray) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    return write


def flipped(path: Path) -> None:
    """Write features of which a bit is another one then."""
    vectors = np.ones((30, 40), "f4")
    if path.suffix == ".npz":
        np.savez(path, features=vectors)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=vectors, chunks=(30, 40), fletcher32=True)
    content = bytearray(path.read_bytes())
    content[content.index(vectors.tobytes()[:400]) + 40] ^= 1
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "rows of two sizes": (npy(a=np.ones((2, 5), "f4"), b=np.ones((3, 6), "f4")), "no axis has the same size"),
    "of two dimensions": (npy(a=np.ones((2, 5), "f4"), b=np.ones((3, 6, 1), "f4")), "all alike"),
    "ambiguous": (npy(a=np.ones((4, 5), "f4")), "Give the axes: TD or DT"),
    "no frames": (npy(a=np.ones((0, 5), "f4"), b=np.ones((1, 5), "f4")), r"a has the shape \(0, 5\)"),
    "NaN": (npy(a=np.full((2, 5), np.nan, "f4"), b=np.ones((3, 5), "f4")), "frame 0 of a has NaN"),
    "text": (npy(a=np.array([["x"]])), "in place of numbers"),
    "damaged": (lambda folder: (folder / "a.npy").write_bytes(b"\x93NUMPY"), "a.npy can't be read"),
    "empty pickle": (lambda folder: (folder / "a.pkl").touch(), "a.pkl can't be read"),
    "no HDF5": (lambda folder: (folder / "a.h5").write_bytes(b"x" * 99), "a.h5 can't be read"),
    "nothing": (lambda _: None, "has no features"),
    "two files a clip": (
        lambda folder: (npy(a=np.ones((2, 5), "f4"))(folder), np.savez(folder / "a.npz", np.ones(1))),
        "several files for a",
    ),
    "times that do not increase": (
        lambda folder: np.savez(
            folder / "a.npz", features=np.ones((3, 2, 1, 1), "f4"), frame_seconds=[0.0, 2, 1]
        ),
        "times of a do not increase",
    ),
    "times of no length": (
        lambda folder: np.savez(folder / "a.npz", features=np.ones((3, 2, 1, 1), "f4"), frame_seconds=1.0),
        r"3 frames, and times of shape \(\)",
    ),
    "beyond float32": (
        npy(a=np.full((2, 5), 1e300), b=np.ones((3, 5))),
        "frame 0 of a has .* beyond float32",
    ),
    "objects in a .npz": (
        lambda folder: np.savez(folder / "a.npz", features=np.array([{}])),
        "a.npz can't be read: .*pickle",
    ),
    "a flipped bit in a .npz": (lambda folder: flipped(folder / "a.npz"), "a.npz can't be read: Bad CRC-32"),
    "a flipped bit in HDF5": (lambda folder: flipped(folder / "a.h5"), "a.h5 can't be read"),
    "arrays of two lengths in a list": (
        lambda folder: dump_pickle(folder / "a.pkl", [VECTORS["a"], VECTORS["b"]]),
        "a.pkl can't be read: .*inhomogeneous",
    ),
    "too few times": (
        lambda folder: np.savez(folder / "a.npz", features=np.ones((3, 2, 1, 1), "f4"), frame_seconds=[0.0]),
        r"3 frames, and times of shape \(1,\)",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_in_a_sentence_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    write, message = BAD[what]
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    with pytest.raises(FeatureFileError, match=message):
        import_(tmp_path / "files", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_a_rate_a_name_and_a_new_folder_are_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS["a"])
    with pytest.raises(UnknownTimesError, match="does not say when the frames of a are shown"):
        import_(tmp_path, tmp_path / "out", axes="TD", times=Times())
    with pytest.raises(ConfigError, match=r"'../x' can't name features"):
        import_(tmp_path, tmp_path / "out", name="../x")
    with pytest.raises(StoreError, match="exists"):
        import_(tmp_path, tmp_path)


def test_no_network_makes_imported_features(tmp_path: Path) -> None:
    from pipeline.backbone.weights import find_weights

    np.save(tmp_path / "a.npy", VECTORS["a"])
    contract = import_(tmp_path, tmp_path / "out", axes="TD")
    with pytest.raises(ForeignFeaturesError, match="The features i3d were imported"):
        find_weights(contract, place=tmp_path)
