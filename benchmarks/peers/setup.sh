#!/bin/sh
# Make the environments of the peers that `make bench-real` compares with.
#
#     benchmarks/peers/setup.sh FOLDER [llama.cpp|openvino|models ...]
#
# FOLDER gets `llama-server` (built from llama-cpp-python's sdist for this processor: about 25 minutes
# on one core), `openvino/` (a virtual environment, 1.6 GB) and `openvino-models/`. What is there is
# kept. Nothing of it becomes a dependency of Draftless. Environment:
#
#     PYTHON   Python 3.11 or newer for the virtual environments (python3)
#     JOBS     compiler processes (1: more may run out of memory on a small machine)
#     MODELS   folder with the checkpoints NAME/ and the files gguf/NAME.gguf (models)
#     NAMES    of the models to convert (all folders of MODELS that hold a config.json)
#     PIP_FLAGS  for pip's installation of torch, such as the index of its CPU builds
#     PROJECT_PYTHON  a Python with the package gguf, for the bf16 GGUF files ($PYTHON)
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [llama.cpp|openvino|models ...]" >&2; exit 2; }
mkdir -p "$1"
FOLDER=$(cd "$1" && pwd)
shift
PYTHON=${PYTHON:-python3}
PROJECT_PYTHON=${PROJECT_PYTHON:-$PYTHON}
MODELS=${MODELS:-models}

LLAMA=llama-cpp-python==0.3.36
OPENVINO="openvino-genai==2026.4.1.0 transformers==5.5.4 nncf==3.4.0 requests"
# Without their dependencies: optimum-intel names torchvision, which brings a CUDA build of torch.
OPTIMUM="optimum==2.3.0 optimum-intel==2.2.0"

build_llama() {
    [ -x "$FOLDER/llama-server" ] && return
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "$PYTHON" -m venv "$work/venv"
    # pip asks the sdist for its metadata even where it only downloads it.
    "$work/venv/bin/pip" download --quiet --no-deps --no-binary :all: -d "$work" "$LLAMA"
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
    # GCC 12 drops the stores to the tile configuration, whose intrinsic names its first 8 bytes only,
    # and quantised models end with SIGILL on AMX: let the compiler see that all of it is read.
    sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' \
        "$work"/llama_cpp_python-*/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
    "$work/venv/bin/pip" install --quiet cmake ninja
    PATH=$work/venv/bin:$PATH
    cmake -S "$work"/llama_cpp_python-*/vendor/llama.cpp -B "$work/build" -G Ninja \
        -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >"$FOLDER/llama-configure.log"
    echo "Building llama-server (about 25 minutes on one core)"
    ninja -C "$work/build" -j "${JOBS:-1}" llama-server >"$FOLDER/llama-build.log"
    cp "$work/build/bin/llama-server" "$FOLDER/llama-server.part"
    mv "$FOLDER/llama-server.part" "$FOLDER/llama-server"
    echo "$LLAMA" >"$FOLDER/llama-server.version"
}

install_openvino() {
    [ -e "$FOLDER/openvino/.done" ] && return
    "$PYTHON" -m venv "$FOLDER/openvino"
    pip="$FOLDER/openvino/bin/pip --quiet --disable-pip-version-check"
    # shellcheck disable=SC2086 # lists of options and packages
    $pip install ${PIP_FLAGS:-} torch==2.13.0
    # shellcheck disable=SC2086
    $pip install $OPENVINO
    # shellcheck disable=SC2086
    $pip install --no-deps $OPTIMUM
    touch "$FOLDER/openvino/.done"
}

convert_models() {
    for name in ${NAMES:-$(cd "$MODELS" && ls -d */ | tr -d /)}; do
        if [ -e "$MODELS/gguf/$name.gguf" ]; then
            "$PROJECT_PYTHON" "$HERE/bf16_gguf.py" "$MODELS/gguf/$name.gguf"
        fi
        made="$FOLDER/openvino-models/$name"
        if [ -e "$MODELS/$name/config.json" ] && [ -e "$FOLDER/openvino/.done" ] && [ ! -e "$made" ]
        then
            rm -rf "$made.part"
            HF_HUB_OFFLINE=1 "$FOLDER/openvino/bin/python" -m optimum.commands.optimum_cli export openvino \
                -m "$MODELS/$name" --task text-generation-with-past --weight-format fp16 "$made.part"
            mv "$made.part" "$made"
        fi
    done
}

[ $# -ge 1 ] || set -- llama.cpp openvino models
for what; do
    case $what in
        llama.cpp) build_llama ;;
        openvino) install_openvino ;;
        models) convert_models ;;
        *) echo "unknown peer '$what': give llama.cpp, openvino or models" >&2; exit 2 ;;
    esac
done
