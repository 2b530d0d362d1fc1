"""Atomic writes through temporary directories, with cleanup after kills."""

import os
import signal
import threading
import time

import pytest

from sklearn_ape.utils.files import write_file_atomically, write_folder_atomically

pytest.importorskip("fcntl")


def start_writing_in_child(target):
    """Start a process that is writing to the target, and return its ID."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with write_folder_atomically(target) as folder:
            (folder / "half").write_text("half")
            os.write(writer, b"ready")
            time.sleep(60)
        os._exit(0)
    assert os.read(reader, 5) == b"ready"
    os.close(reader)
    os.close(writer)
    return child


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestAtomicDirectory:
    def test_folder_of_killed_process_is_removed(self, tmp_path):
        """The folder of a running process is kept."""
        target = tmp_path / "a [1].csv"
        killed, living = start_writing_in_child(target), start_writing_in_child(target)
        try:
            assert len(list(tmp_path.iterdir())) == 2
            os.kill(killed, signal.SIGKILL)
            os.waitpid(killed, 0)
            with write_folder_atomically(target) as folder:
                assert list(folder.iterdir()) == []
                assert len(list(tmp_path.iterdir())) == 2
            (left,) = tmp_path.iterdir()
            assert (left / "half").read_text() == "half"
        finally:
            os.kill(living, signal.SIGKILL)
            os.waitpid(living, 0)

    def test_other_files_are_kept(self, tmp_path):
        """Only temporary folders of exactly the same target are removed."""
        others = [".b.csv.00000000.unfinished", ".a.csv.saving", "a.csv.1.unfinished", "a.csv"]
        for name in others:
            (tmp_path / name).mkdir()
        with write_folder_atomically(tmp_path / "a.csv"):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)

    @pytest.mark.parametrize("name", ["a" * 255, "\N{GRINNING FACE}" * 63])
    def test_longest_name_is_written(self, tmp_path, name):
        """The name of the temporary folder is not longer than file systems allow."""
        with write_file_atomically(tmp_path / name) as file:
            file.write_text("complete")
        assert (tmp_path / name).read_text() == "complete"

    def test_concurrent_threads_do_not_remove_folders(self, tmp_path):
        """A thread must not remove a folder that another thread has just created."""
        failures = []

        def work():
            try:
                for _ in range(50):
                    with write_folder_atomically(tmp_path / "a") as folder:
                        (folder / "file").write_text("mine")
                        assert (folder / "file").read_text() == "mine"
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert list(tmp_path.iterdir()) == []

    def test_error_removes_the_folder(self, tmp_path):
        def fails():
            with write_folder_atomically(tmp_path / "a") as folder:
                (folder / "half").touch()
                raise ValueError("while writing")

        with pytest.raises(ValueError, match="while writing"):
            fails()
        assert list(tmp_path.iterdir()) == []
