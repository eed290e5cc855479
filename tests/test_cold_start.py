"""What the commands of every day do not import: a second here is a second of each call.

No clock is read: which modules a command ends with is what decides, and does not vary.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from retrieval_engine.cli import main

TORCH = {"torch", "safetensors.torch"}
MODELS = {"transformers", "peft", "accelerate", "huggingface_hub"}
COMPILERS = {"torch._dynamo", "torch._inductor", "sympy"}
TABLES = {"pandas", "datasets", "pyarrow.dataset", "matplotlib", "scipy", "sklearn"}
SOURCE = "scenes:8?seed=7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cold")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        encode = ["encode", SOURCE, "--device", "cpu", "--dtype", "float32"]
        for arguments in ([*encode, "--features", "itc,pooled,tokens"], ["index"]):
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, result.output
    return made


@pytest.mark.parametrize(
    ("command", "needless"),
    [
        ("store info", {"faiss", "PIL", *TORCH, *MODELS, *TABLES}),
        # Nothing is new: no model is asked.
        (f"encode {SOURCE} --device cpu --features itc,pooled,tokens", TORCH | MODELS | TABLES),
        ("index", TORCH | MODELS | TABLES),
        ("search --image scenes:7/0", TORCH | MODELS | TABLES),
        ("search dog", TORCH | MODELS | TABLES),
        ("search dog -k 2 --rerank 2", MODELS | COMPILERS | TABLES),
        ("eval --recall --rerank 2", MODELS | COMPILERS | TABLES),
        ("caption --limit 1", MODELS | COMPILERS | TABLES),
        # What draws its curves and writes its table comes when the head is trained.
        (
            "train-head --out head --epochs 1 --val-size 2",
            MODELS | COMPILERS | {"datasets", "scipy", "sklearn"},
        ),
    ],
)
def test_a_command_ends_without(folder: Path, command: str, needless: set[str]) -> None:
    code = (
        "import sys\n"
        "from retrieval_engine.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit as end: print(end.code, sorted({needless} & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *command.split()], cwd=folder, capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1:] == ["0 []"], run.stderr


def test_a_server_listens_before_torch_is_there() -> None:
    needless = TORCH | MODELS | COMPILERS | TABLES
    code = (
        f"import sys, retrieval_engine.serve.server\nprint(sorted({needless} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


def test_garbage_is_looked_for_less_often_in_a_process_of_our_own(folder: Path) -> None:
    code = "import gc; from retrieval_engine.cli import main\ntry: main({})\nexcept SystemExit: print(gc.get_threshold()[0])"
    found = []
    for given in ("", "args=['--version']"):
        run = [sys.executable, "-c", code.format(given), "--version"]
        found.append(subprocess.run(run, capture_output=True, text=True, cwd=folder, check=True))
    assert [int(run.stdout.split()[-1]) for run in found] == [100_000, 700]
