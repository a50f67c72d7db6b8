# SPDX-License-Identifier: Apache-2.0
"""What the source must not do, read from the syntax tree, and that hostile input is only text.

See ``docs/security.md``; ``tests/faults/security.py`` tries the same on whole runs.
"""

from __future__ import annotations

import ast
import pickle
import socket
from pathlib import Path

import pytest
from app_runs import bmex, participants, status_of

from bmex_bids.cli.run import main
from bmex_bids.exceptions import WeightsError
from bmex_bids.network.weights.checkpoints import read_state

PACKAGE = Path(__file__).resolve().parents[1] / "bmex_bids"

#: never called, under whatever name they are imported
FORBIDDEN = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "joblib.load",
    "tempfile.mktemp",
    "os.umask",
}
#: where one of them stands with a reason
ALLOWED = {("outputs/files.py", "os.umask")}  # can only be read by setting it
#: an argument that decides whether a call is safe: name → argument, what it must be, its default
SAFE_WITH = {
    "torch.load": ("weights_only", "True", ""),
    "np.load": ("allow_pickle", "False", "False"),
}
#: modules that speak to a network, and who may import them: what fetches weights on demand, and
#: what asks for the machine's name
NETWORK = {"socket", "ssl", "urllib.request", "http.client", "requests", "ftplib", "smtplib"}
MAY_IMPORT = {
    ("network/weights/download.py", "urllib.request"),
    ("network/weights/download.py", "http.client"),
    ("outputs/lock.py", "socket"),
}


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def faults(name: str, tree: ast.AST) -> list[str]:
    """What a file does that it must not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"imports {a.name}" for a in node.names if a.name in NETWORK]
        if isinstance(node, ast.ImportFrom) and (node.module or "") in NETWORK:
            found.append(f"imports {node.module}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN and (name, called) not in ALLOWED:
            found.append(f"calls {called}")
        given = {word.arg: word.value for word in node.keywords}
        if "shell" in given and ast.unparse(given["shell"]) != "False":
            found.append(f"calls {called} with a shell")
        if called.startswith("subprocess.") and node.args:
            if isinstance(node.args[0], ast.JoinedStr | ast.BinOp | ast.Constant):
                found.append(f"calls {called} with a string")
        if called in SAFE_WITH:
            argument, value, default = SAFE_WITH[called]
            if (ast.unparse(given[argument]) if argument in given else default) != value:
                found.append(f"calls {called} without {argument}={value}")
    return found


def test_no_shell_no_code_from_data_no_network():
    bad = {
        f"{name}: {fault}"
        for name, tree in sources()
        for fault in faults(name, tree)
        if (name, fault.removeprefix("imports ")) not in MAY_IMPORT
    }
    assert bad == set()


@pytest.mark.parametrize(
    "line",
    [
        "os.system('ls')",
        "subprocess.run(command, shell=True)",
        "subprocess.run(f'ls {path}')",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "import urllib.request",
        "from http.client import HTTPConnection",
    ],
)
def test_the_rule_sees_what_it_forbids(line):
    assert faults("a.py", ast.parse(line))


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.mkdir, (self.mark,))


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors", ".pkl"])
def test_weights_that_are_a_program_are_not_run(ending, tmp_path):
    mark = tmp_path / "PWNED"
    path = tmp_path / f"weights{ending}"
    path.write_bytes(pickle.dumps(Runs(mark)))
    with pytest.raises(
        WeightsError, match=r"more than tensors, which is refused|with the ending \.pt"
    ):
        read_state(path)
    assert not mark.exists()


def test_a_plugin_file_that_is_a_program_is_not_run(bids_skeleton, tmp_path, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": None})
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(f"plugin: !!python/object/apply:os.mkdir ['{tmp_path / 'PWNED'}']\n")
    assert bmex(bids, "--use-plugin", str(plugin), "--skip-bids-validation", out="new") == 2
    assert "expected YAML in" in capsys.readouterr().err
    assert not (tmp_path / "PWNED").exists()
    assert not (tmp_path / "new").exists()  # it is said before anything is written


def test_settings_bring_no_plugin_no_output_folder_and_no_name_of_a_run(tmp_path):
    from bmex_bids.cli.parser import parse

    (tmp_path / "bids").mkdir()
    (tmp_path / "plugin.yml").write_text("plugin: SLURM\n")
    settings = tmp_path / "config.toml"
    settings.write_text(
        'run_id = "../../escaped"\nversion = "0"\n[paths]\n'
        'bids_dir = "/etc"\noutput_dir = "/usr"\nwork_dir = "/tmp/w"\n'
        f'[execution]\nplugin_file = "{tmp_path / "plugin.yml"}"\nclean_workdir = true\n'
    )
    arguments = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant"]
    config = parse([*arguments, "--config-file", str(settings)])
    assert config.execution.plugin_file is None
    assert not config.execution.clean_workdir
    assert config.paths.output_dir == tmp_path / "out"
    assert config.log_dir.parent == tmp_path / "out" / "logs"
    assert ".." not in config.run_id


@pytest.fixture
def no_network(monkeypatch):
    """Every connection that is not local is an error, and noted."""
    tried = []
    real = socket.socket.connect

    def connect(self, address):
        if self.family == socket.AF_UNIX:
            return real(self, address)
        tried.append(address)
        raise OSError("no network in this test")

    def look_up(*given, **_):
        tried.append(given)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("NO_ET", raising=False)
    monkeypatch.delenv("NIPYPE_NO_ET", raising=False)
    return tried


@pytest.mark.usefixtures("coarse_grid")
def test_a_run_tries_no_connection(
    no_network, bids_skeleton, brain, tiny_records, tmp_path, monkeypatch
):
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_records)
    monkeypatch.chdir(tmp_path)
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    arguments = [str(bids), "out", "participant", "group", "--nprocs", "1"]
    assert main([*arguments, "--skip-bids-validation"]) == 0
    assert status_of(tmp_path / "out")[0]["status"] == "done"
    assert no_network == []
