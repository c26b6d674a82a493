#!/bin/sh
# Sets up what benchmarks/emulated.py runs under qemu-aarch64: Debian's arm64 Python, unpacked beside the system and
# never installed, and the aarch64 wheels of numpy, Pillow and ONNX Runtime in the versions that $PYTHON has.
#
#   PYTHON=.venv/bin/python sh benchmarks/aarch64_sysroot.sh [FOLDER]
#
# FOLDER is $EDGETUNE_AARCH64_SYSROOT, else edgetune/aarch64 in the user's cache. Needs no root, but Debian: apt-get,
# dpkg, and sources that carry arm64. About 45 MB are downloaded; 250 MB of disk.
set -eu

python=${PYTHON:-python3}
folder=${1:-${EDGETUNE_AARCH64_SYSROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetune/aarch64}}
for tool in apt-get dpkg "$python"; do
    command -v "$tool" >/dev/null || { echo "$tool is missing; this script needs Debian and a Python with pip" >&2; exit 1; }
done

rm -rf "$folder"
mkdir -p "$folder/root" "$folder/site" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
: >"$folder/apt/status" # an empty system, so that apt fetches the C library too

arm64_apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Debug::NoLocking=1 \
        -o Dir::State="$folder/apt" -o Dir::State::lists="$folder/apt/lists" \
        -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" "$@"
}
arm64_apt update
arm64_apt install --yes --no-install-recommends --download-only python3 libstdc++6 >/dev/null
for package in "$folder"/apt/cache/archives/*.deb; do
    dpkg -x "$package" "$folder/root"
done
rm -rf "$folder/apt"

# ONNX Runtime reads the processors from here, and crashes on an x86 list, which is what qemu would show it.
mkdir -p "$folder/root/proc"
for number in $(seq 0 $(($(nproc --all) - 1))); do
    printf 'processor\t: %d\nFeatures\t: fp asimd crc32\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$number"
    printf 'CPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done >"$folder/root/proc/cpuinfo"

version=$(basename "$(readlink "$folder/root/usr/bin/python3")" | sed 's/python//')
wheels=$("$python" -c 'import numpy, onnxruntime, PIL
print(f"numpy=={numpy.__version__} onnxruntime=={onnxruntime.__version__} pillow=={PIL.__version__}")')
# shellcheck disable=SC2086 # three requirements
"$python" -m pip install --quiet --target "$folder/site" --python-version "$version" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 $wheels
echo "$folder"
