"""Group of faults: folders and files without permission to write or read."""

import encodings.utf_8_sig  # noqa: F401  # the user nobody may be unable to read its file
import shutil
import warnings
from pathlib import Path

import numpy as np

from sklearn_ape import load_pretrained
from tests.robustness.child_processes import expect, judge_in_child, run_as_nobody, run_in_child
from tests.robustness.faults.commands import EncodeCommand, FitCommand, command
from tests.robustness.faults.full_disks import can_mount, disk, lock
from tests.robustness.faults.world import BATCH


def _change_modes(folder, folder_mode, file_mode):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folder_mode if path.is_dir() else file_mode)


LOCKS = {
    "a read-only folder": lambda place: _change_modes(place, 0o555, 0o444),
    "read-only files": lambda place: _change_modes(place, 0o777, 0o444),
    "closed files": lambda place: _change_modes(place, 0o777, 0o000),
    "a closed folder": lambda place: place.chmod(0o000),
}
READ_ONLY_DISK = "a read-only disk"


class Case:
    """Work in a folder without permissions: it succeeds or raises an OSError with the path."""

    def __init__(self, inputs, filled):
        self.inputs = inputs
        self.filled = filled

    def begin(self, place):
        if self.filled:
            self.do(place)

    def do(self, place):
        raise NotImplementedError

    def attempt(self, place):
        try:
            self.do(place)
        except OSError as error:
            expect(str(place) in str(error), f"names no file: {error!r}")
            return "error"
        return "right"


class Cache(Case):
    def do(self, place):
        encoder = self.inputs.encoder(place / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.inputs.check_rows(encoder.transform(self.inputs.paths[:20]), slice(20))
            except OSError as error:
                expect("or cache=None" in str(error), f"no remedy: {error}")
                raise


class ToFile(Case):
    def do(self, place):
        encoder = self.inputs.encoder(None)
        path = place / "f.npy"
        features = encoder.encode_to(path, self.inputs.paths[:20], chunk_size=BATCH)
        self.inputs.check_rows(features, slice(20))


class Save(Case):
    def __init__(self, inputs, filled):
        super().__init__(inputs, filled)
        self.aligner = inputs.aligners()[0]

    def do(self, place):
        self.aligner.save_pretrained(place / "model")


class Load(Save):
    def attempt(self, place):
        try:
            model = load_pretrained(place / "model")
        except OSError as error:
            expect(str(place) in str(error), f"names no file: {error!r}")
            return "error"
        expect(model.fingerprint_ == self.aligner.fingerprint_, "another model")
        return "right"


class Images(Case):
    def do(self, place):
        for path in self.inputs.paths[:5]:
            shutil.copy(path, place)

    def attempt(self, place):
        paths = [str(place / Path(path).name) for path in self.inputs.paths[:5]]
        encoder = self.inputs.encoder(None).set_params(on_error="nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features = encoder.transform([*paths, self.inputs.paths[5]])
        self.inputs.check_rows(features[5:], slice(5, 6))
        if not encoder.errors_:
            self.inputs.check_rows(features[:5], slice(5))
            return "right"
        expect(list(encoder.errors_) == [0, 1, 2, 3, 4], f"{encoder.errors_}")
        expect(np.isnan(features[:5]).all(), "features of an unreadable image")
        expect(all(p in encoder.errors_[n] for n, p in enumerate(paths)), f"{encoder.errors_}")
        return "error"


class CommandCase(Case):
    def __init__(self, inputs, filled, work):
        super().__init__(inputs, filled)
        self.work = work

    def _run(self, place):
        options = ["--cache", "memory"] if "--cache" in self.work.arguments(place) else []
        log = place.with_suffix(".log")
        return command([*self.work.arguments(place), *options], log), log.read_text()

    def do(self, place):
        code, output = run_in_child(lambda: self._run(place))
        expect(code == 0, output, "crash")

    def attempt(self, place):
        code, output = self._run(place)
        expect("Traceback" not in output, output[-600:], "crash")
        if code == 0:
            return "right"
        expect(code in (1, 2), f"exit code {code}: {output}")
        expect(_bare(str(place)) in _bare(output), output)
        return "error"


def _bare(text):
    """Return a text without spaces, line breaks and the frame that the command draws."""
    return "".join(character for character in text if character not in " \n│╭╮╰╯─")


def _content(place):
    return {
        path.relative_to(place): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def _run_case(case, place, lock_it):
    case.begin(place)
    before = _content(place)
    log = place.with_suffix(".log")
    log.touch()
    log.chmod(0o777)
    lock_it(place)
    try:
        kind = run_in_child(lambda: run_as_nobody(lambda: case.attempt(place)))
    finally:
        if lock_it is not lock:
            _restore_permissions(place)
    if kind == "error" or lock_it is lock:
        after = _content(place)
        gone = [str(name) for name in before if after.get(name) != before[name]]
        expect(not gone, f"changed despite an error: {gone}", "lost")
        new = [str(name) for name in after if name not in before]
        expect(not new, f"left behind: {new}")
    return kind


def _restore_permissions(place):
    place.chmod(0o777)
    for path in place.rglob("*"):
        path.chmod(0o777)


def outcomes(folder, amount, inputs):
    kinds = {
        "transform with a cache": Cache,
        "encode_to": ToFile,
        "save_pretrained": Save,
        "load_pretrained": Load,
        "reading images": Images,
    }
    cases = {
        f"{name}, {state}": case_class(inputs, filled)
        for name, case_class in kinds.items()
        for filled, state in ((True, "there before"), (False, "new"))
        if filled or case_class not in (Load, Images)
    }
    for work in (EncodeCommand(inputs), FitCommand(inputs)):
        cases[f"{work.name}, there before"] = CommandCase(inputs, True, work)
        cases[f"{work.name}, new"] = CommandCase(inputs, False, work)
    mounts = can_mount(folder)
    for number, (name, case) in enumerate(cases.items()):
        for kind, lock_it in LOCKS.items():
            place = folder / f"{number} {kind}"
            place.mkdir()
            place.chmod(0o777)
            yield judge_in_child(
                f"{name}: {kind}", lambda c=case, p=place, w=lock_it: _run_case(c, p, w)
            )
        if mounts:
            place = folder / f"{number} disk"
            with disk(place, 8192):
                yield judge_in_child(
                    f"{name}: {READ_ONLY_DISK}", lambda c=case, p=place: _run_case(c, p, lock)
                )
