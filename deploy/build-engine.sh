#!/bin/sh
# Builds a bundle's TensorRT engine on the machine that will run it, and proves it there. Needs no PyTorch and no sudo.
set -eu

usage() {
    cat <<'TEXT'
usage: build-engine.sh [options] BUNDLE [options of edgetune build]

  --wheel FILE       edgetune's wheel or source folder, instead of the package index  [EDGETUNE_WHEEL]
  --venv DIR         the environment, made if it is not there                         [EDGETUNE_VENV]
  --tensorrt NAME    what pip installs where no TensorRT is, as 'tensorrt-cu12<11'    [EDGETUNE_TENSORRT]
  --data DIR         labelled images, CLASS/*.jpg, for the engine's parity
  --evidence FILE    where the evidence goes            [edgetune-evidence.json in this folder]

Other variables: PYTHON, the interpreter (python3); EDGETUNE_CACHE, where engines go; EDGETUNE_CONSTRAINTS, a file of
exact versions for pip. Everything behind BUNDLE goes to edgetune build, and its --engine-cache DIR to the other steps
as well. Examples:

  build-engine.sh bundle                                                   a Jetson, with JetPack's TensorRT
  build-engine.sh bundle --backend tensorrt                                an x86 server with its GPU
  build-engine.sh bundle --backend tensorrt-rtx                            an RTX card
  build-engine.sh bundle --backend tensorrt-rtx --targets sm86,sm89        for RTX cards, on any machine

Exit codes: 0 done, 1 error, 2 wrong usage, 3 a gate failed.
TEXT
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $1"
    exit "${2:-1}"
}

run() {
    { printf '+'; printf ' %s' "$@"; printf '\n'; } >&2
    "$@"
}

# Goes on after a step that failed or crashed, so that the evidence is written all the same; an error counts more than
# a failed gate. Stopping the step stops the script.
worst=0
try() {
    code=0
    run "$@" || code=$?
    case $code in
    0) ;;
    2 | 130 | 143) exit "$code" ;;
    3) [ "$worst" -ne 0 ] || worst=3 ;;
    *)
        say "failed with exit code $code: $*"
        worst=1
        ;;
    esac
}

wheel=${EDGETUNE_WHEEL:-}
venv=${EDGETUNE_VENV:-${XDG_DATA_HOME:-${HOME:-.}/.local/share}/edgetune/venv}
tensorrt=${EDGETUNE_TENSORRT:-}
data=
evidence="edgetune-evidence.json"
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --wheel | --venv | --tensorrt | --data | --evidence)
        [ $# -ge 2 ] || fail "$1 needs a value" 2
        case $1 in
        --wheel) wheel=$2 ;;
        --venv) venv=$2 ;;
        --tensorrt) tensorrt=$2 ;;
        --data) data=$2 ;;
        --evidence) evidence=$2 ;;
        esac
        shift 2
        ;;
    -*) fail "unknown option $1; options of edgetune build go behind BUNDLE" 2 ;;
    *) break ;;
    esac
done
if [ $# -eq 0 ]; then
    usage >&2
    exit 2
fi
bundle=$1
shift
[ -f "$bundle/manifest.json" ] || fail "$bundle is no bundle: it has no manifest.json"
[ -z "$data" ] || [ -d "$data" ] || fail "--data $data is no folder"
[ -z "$wheel" ] || [ -e "$wheel" ] || fail "--wheel $wheel does not exist"
case $wheel in
"" | /*) ;;
*) wheel=$PWD/$wheel ;; # pip takes a bare name for a package of the index
esac

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || fail "there is no $python; install Python 3.10 to 3.13, or set PYTHON"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.10 | 3.11 | 3.12 | 3.13) ;;
*) fail "$python is Python $version; edgetune needs 3.10 to 3.13: set PYTHON to another one" ;;
esac

jetson=
[ ! -e /etc/nv_tegra_release ] || jetson=yes
# JetPack and apt install TensorRT for the system's Python, and an environment sees it only if it was made to.
outside=false
[ -z "$jetson" ] || outside=true
# Not in this folder, where Python looks first.
if "$python" -c 'import sys; sys.path[:] = filter(None, sys.path); import importlib.util as u
sys.exit(sys.prefix != sys.base_prefix or not u.find_spec("tensorrt"))'; then
    outside=true
fi
is_made() {
    [ -x "$venv/bin/python" ] &&
        [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ] &&
        { [ "$outside" = false ] || grep -qi '^include-system-site-packages *= *true' "$venv/pyvenv.cfg"; }
}
if is_made; then
    say "the environment $venv is there"
else
    set_up="$python -m venv"
    [ "$outside" = false ] || set_up="$set_up --system-site-packages"
    # shellcheck disable=SC2086 # words, on purpose
    run $set_up "$venv" || fail "the environment cannot be made; on Ubuntu and JetPack the package python3-venv is needed"
fi

pip() {
    if [ -n "${EDGETUNE_CONSTRAINTS:-}" ]; then
        run "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$EDGETUNE_CONSTRAINTS" "$@"
    else
        run "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
    fi
}
has() {
    "$venv/bin/python" -c 'import sys; sys.path[:] = filter(None, sys.path); import importlib.util as u
sys.exit(not any(map(u.find_spec, sys.argv[1:])))' "$@"
}

pip "${wheel:-edgetune}[serve,cpu,onnx]"
# pip takes a wheel of the same version for the one that is installed, even if it is another.
[ ! -f "$wheel" ] || pip --force-reinstall --no-deps "$wheel"
"$venv/bin/python" - <<'CODE' || fail "PyTorch was installed into $venv, which engines never need: please report this"
import pathlib, sys, sysconfig
sys.exit((pathlib.Path(sysconfig.get_path("purelib")) / "torch").is_dir())
CODE

# Which TensorRT: the one that was asked for, else the one that is here. Where the engine goes, the other steps look.
backend=
cache=
before=
for word in "$@"; do
    case $before in
    --backend) backend=$word ;;
    --engine-cache) cache=$word ;;
    esac
    case $word in
    --backend=*) backend=${word#--backend=} ;;
    --engine-cache=*) cache=${word#--engine-cache=} ;;
    --targets | --targets=*) backend=${backend:-tensorrt-rtx} ;;
    esac
    before=$word
done
case $backend in
tensorrt) modules="tensorrt tensorrt_bindings" ;;
tensorrt-rtx) modules="tensorrt_rtx tensorrt_rtx_bindings" ;;
*) modules="tensorrt tensorrt_bindings tensorrt_rtx tensorrt_rtx_bindings" ;;
esac
# shellcheck disable=SC2086 # words, on purpose
if has $modules; then
    :
elif [ -n "$tensorrt" ]; then
    pip "$tensorrt"
elif [ -n "$jetson" ] && [ "$backend" != tensorrt-rtx ]; then
    fail "$venv sees no TensorRT: JetPack's is the package python3-libnvinfer, for the system's Python (this is $version)"
elif [ "$backend" = tensorrt ] || [ "$backend" = tensorrt-rtx ]; then
    pip "${wheel:-edgetune}[$backend]"
else
    fail "no TensorRT is here: say --backend tensorrt (servers) or --backend tensorrt-rtx (RTX cards) behind BUNDLE" 2
fi

edgetune=$venv/bin/edgetune
try "$edgetune" doctor ${cache:+--engine-cache "$cache"}
try "$edgetune" build "$bundle" "$@"
has_gpu() {
    "$venv/bin/python" -c 'import sys; sys.path[:] = filter(None, sys.path)
from edgetune.runners.cuda import gpu_identity
sys.exit(gpu_identity() is None)'
}
if [ "$worst" -eq 1 ]; then
    say "skipped: there is no engine to prove"
elif has_gpu; then
    if [ -n "$data" ]; then
        try "$edgetune" parity "$bundle" --runner engine ${cache:+--engine-cache "$cache"} --data "$data"
    else
        say "skipped: parity of the engine needs labelled images; give them with --data DIR"
    fi
    try "$edgetune" bench "$bundle" --runner cpu --runner engine ${cache:+--engine-cache "$cache"}
else
    say "skipped: no GPU is here, so the engine was built and not run; copy the engine cache (${cache:-edgetune doctor names it})" \
        "to the device, and run edgetune parity and edgetune bench there"
fi
try "$edgetune" doctor --evidence "$evidence" --bundle "$bundle" ${cache:+--engine-cache "$cache"} \
    ${data:+--data "$data"} --force
exit "$worst"
