"""The key folder as it changes under a running gateway."""

import os
from hashlib import sha256
from pathlib import Path

from daemons.gateway.tenants.keys import KeyFolder
from daemons.gateway.tenants.ring import KeyRing


def _write(folder: Path, file: str, name: str, extra: str = "") -> None:
    hashed = sha256(name.encode()).hexdigest()
    (folder / file).write_text(f'name: {name}\nsecrets: ["sha256:{hashed}"]\n{extra}')


def _folder(tmp_path: Path) -> tuple[KeyFolder, KeyRing]:
    ring = KeyRing()
    return KeyFolder(tmp_path, ring), ring


def test_a_change_is_taken_over_and_a_removed_key_is_refused(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    _write(tmp_path, "a.yaml", "team-a")
    assert folder.refresh()
    assert ring.find(b"team-a", 0) is not None
    assert not folder.refresh()
    (tmp_path / "a.yaml").unlink()
    assert folder.refresh()
    assert ring.find(b"team-a", 0) is None


def test_a_file_rewritten_in_place_with_its_size_and_time_kept_is_read_again(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    _write(tmp_path, "a.yaml", "team-a")
    file = tmp_path / "a.yaml"
    before = file.stat()
    folder.refresh()
    # The clock of files is a coarse one: two writes may fall into one tick of it.
    while (after := file.stat()).st_ctime_ns == before.st_ctime_ns:
        _write(tmp_path, "a.yaml", "team-b")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
        before.st_mtime_ns,
        before.st_size,
        before.st_ino,
    )
    assert folder.refresh()
    assert ring.aliases == {"team-b"}


def test_a_broken_file_leaves_the_last_good_state_in_force(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    _write(tmp_path, "a.yaml", "team-a")
    folder.refresh()
    for broken in ("expires: 2027-02-30T00:00:00Z\n", "{[a]: b}\n", "colour: red\n"):
        _write(tmp_path, "a.yaml", "team-a", broken)
        assert folder.refresh()
        assert ring.find(b"team-a", 0) is not None


def test_a_file_refused_for_its_name_is_read_once_the_name_is_free(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    _write(tmp_path, "a.yaml", "team-a")
    folder.refresh()
    _write(tmp_path, "b.yaml", "team-a")
    folder.refresh()
    (tmp_path / "a.yaml").unlink()
    folder.refresh()
    assert ring.find(b"team-a", 0) is not None


def test_an_unknown_and_an_expired_key_are_refused(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    _write(tmp_path, "a.yaml", "team-a", "expires: 2027-01-31T00:00:00Z\n")
    folder.refresh()
    assert ring.find(b"nobody", 0) is None
    assert ring.find(b"team-a", 1_801_353_600 - 1) is not None
    assert ring.find(b"team-a", 1_801_353_600) is None


def test_only_files_of_yaml_that_are_not_hidden_are_keys(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    for file in ("a.yaml", ".b.yaml", ".yaml", "c.yaml.new", "d.yml"):
        _write(tmp_path, file, f"team-{file}".replace(".", "-"))
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    folder.refresh()
    assert ring.aliases == {"team-a-yaml"}
    assert not folder.refresh()


def test_of_two_new_files_for_one_name_the_first_by_its_own_name_is_it(tmp_path: Path) -> None:
    folder, ring = _folder(tmp_path)
    for file in ("b.yaml", "a.yaml", "c.yaml"):
        _write(tmp_path, file, "team", f"class: {'batch' if file == 'a.yaml' else 'default'}\n")
    folder.refresh()
    found = ring.find(b"team", 0)
    assert found is not None
    assert found.priority == "batch"
