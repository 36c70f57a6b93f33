#!/bin/bash
# All that flowgen has to show on a GPU, in one call of under nine minutes: see "On a GPU" in README.md beside this.
#
#   bash benchmarks/gpu.sh [--tiny] [--part NAME] [--out FOLDER] [--data FASHION_MNIST]
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# the parts, the cheapest first, and seconds of each; what one leaves of them the next may use
parts=(laws:85 dit:80 transport:90 train:140 sample:50 distill:60)
most=520 out=gpu-results data=$root/benchmarks/data tiny=() only=
usage() { echo "usage: gpu.sh [--tiny] [--part NAME] [--out FOLDER] [--data FASHION_MNIST]; parts: ${parts[*]%:*}" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) tiny=(--tiny) most=3600 ;; # whether all of it works, on a machine of any speed
        --part | --out | --data)
            [ $# -gt 1 ] || usage
            case $1 in --part) only=$2 ;; --out) out=$2 ;; --data) data=$2 ;; esac
            shift ;;
        *) usage ;;
    esac
    shift
done
case " ${parts[*]%:*} " in *" ${only:-laws} "*) ;; *) usage ;; esac

python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "$python" || command -v python3) || { echo "no Python here" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ ${#tiny[@]} = 0 ] || export OMP_NUM_THREADS=1 # small nets on several threads wait for each other
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
rm -f "$out"/gpu.{md,jsonl,log}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton # a part compiles what another has not
export POT_BACKEND_DISABLE_JAX=1 POT_BACKEND_DISABLE_CUPY=1 POT_BACKEND_DISABLE_TENSORFLOW=1 # else POT starts them all
if compgen -G "$root/benchmarks/data/*.whl" > /dev/null; then # packages that this machine lacks
    "$python" -m pip install -q --no-index --no-deps --target "$work/site" "$root"/benchmarks/data/*.whl >> "$out/gpu.log" 2>&1
    PYTHONPATH=$PYTHONPATH:$work/site
fi

# run NAME SECONDS: a part, under its limit; its errors go to the log, and the last of them to the report
run() {
    local limit=$2 began=$SECONDS code
    if [ "$limit" -lt 10 ]; then
        echo "| $1 | not begun: no time was left | |" >> "$work/summary"
        return
    fi
    timeout -k 5 "$limit" "$python" "$root/benchmarks/gpu.py" "$1" --out "$out" --work "$work" --data "$data" \
        --seconds "$limit" ${tiny[@]+"${tiny[@]}"} 2> "$work/error"
    code=$?
    { echo "== $1: $code"; cat "$work/error"; } >> "$out/gpu.log"
    case $code in
        0) state=ok ;;
        3) state="left out: $(tail -n 1 "$work/error")" ;;
        124 | 137) state="out of time" ;;
        *) state=failed ;;
    esac
    echo "| $1 | $state | $((SECONDS - began)) |" | tee -a "$work/summary"
    if [ "$state" = failed ] || [ "$state" = "out of time" ]; then
        failed=1
        { echo; echo "**$1: $state.** The end of its log:"; echo; tail -n 8 "$work/error" | sed 's/^/    /'; echo; } >> "$out/gpu.md"
    fi
}

failed=0 later=0
for part in "${parts[@]}"; do
    [ -z "$only" ] && later=$((later + ${part#*:}))
done
run start 30
for part in "${parts[@]}"; do
    [ -z "$only" ] && later=$((later - ${part#*:}))
    [ -z "$only" ] || [ "$only" = "${part%:*}" ] && run "${part%:*}" $((most - SECONDS - later))
done
{ echo; echo "## Parts"; echo; echo "| part | result | seconds |"; echo "| --- | --- | --- |"; cat "$work/summary"; } >> "$out/gpu.md"
exit $failed
