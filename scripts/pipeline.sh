#!/usr/bin/env bash
# The whole chain: images and a checkpoint in, accuracy and throughput out. `bash scripts/pipeline.sh --help` says more.
set -Eeuo pipefail
umask 027  # later versions of ais_bench refuse folders that others can enter
set -m     # each step is a process group of its own, so that Ctrl-C ends all of it

{ # read to the end before anything runs, so that an update of this file does not change a run

usage() {
    cat <<'END'
usage: bash scripts/pipeline.sh [options]

Without options: 20 sample photos and a sample checkpoint go through every step, on the NPU if there is one, else on the CPU.

data and model
  --data DIR            folder with val_union/ (images) and val_label.txt; or with class folders in val/ (default: sample data)
  --checkpoint FILE     trained TResNet (default: DIR/model_best.pth.tar)
  --class-map FILE      numbers of the class folders (default: their order)
  --img-size N          height and width in pixels (default: 224)
  --uint8               images as bytes, converted on the device (AIPP)
  --skip-bad            leave out images that cannot be read instead of stopping
  --workdir DIR         where all products go (default: ./work)

how it runs
  --backend NAME        auto, ascend or cpu (default: auto)
  --device N            NPU to use (default: 0)
  --soc-version NAME    chip that is compiled for (default: what npu-smi says)
  --batch-sizes LIST    models to compile and to measure (default: 1,4,8,16,32)
  --batch-size N        batch of the accuracy run (default: 1 on ascend, 8 on the CPU)
  --precision NAME      float32, or int8 on the CPU: quantised, measured against float32 (default: float32)
  --perf                measure throughput per batch size (on ascend always)
  --loop N              batches per measurement of throughput (default: 20)
  --repeat N            measurements per batch size, of which the median counts (default: 3)
  --compare N           images to compare with ONNX Runtime after an ascend run, 0 for none (default: 64)
  --min-cosine X        stop if an image's cosine similarity in that comparison is lower

gates: exit status 3 and one sentence if a figure is lower
  --min-top1 PERCENT  --min-top5 PERCENT  --min-throughput IMAGES_PER_SECOND

  --check               say what is there and what is missing for each backend, and run nothing
  --force               do everything again, even what is up to date
  --dry-run             print the commands and run nothing
  --help

Environment: PYTHON names another Python than python3 for the virtual environment.
Exit status: 0 good, 1 a step failed, 2 wrong usage, 3 a gate, 130 Ctrl-C.
END
}

fail() {  # message [status]
    printf 'pipeline.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# ---- options -----------------------------------------------------------------------------------------------------------

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $PWD == "$root" ]]; then here=""; else here=$root/; fi  # commands are shown as short as they can be pasted
data="" checkpoint="" img_size=224 workdir=work backend=auto device="" soc_version="" batch_sizes=1,4,8,16,32 batch_size=""
precision=float32 compare=64 loop=20 repeat=3 perf="" uint8="" check="" dry_run=""
class_map=() bad=() force=() accuracy_gates=() throughput_gate=() compare_gates=()

while (($#)); do
    option=$1
    case $option in
        --*=*) set -- "${option%%=*}" "${option#*=}" "${@:2}"; continue ;;
        --uint8) uint8=1 ;;
        --skip-bad) bad=(--skip-bad) ;;
        --perf) perf=1 ;;
        --check) check=1 ;;
        --force) force=(--force) ;;
        --dry-run) dry_run=1 ;;
        --help | -h) usage; exit 0 ;;
        --data | --checkpoint | --class-map | --img-size | --workdir | --backend | --device | --soc-version | --batch-sizes | --batch-size | --precision | \
            --loop | --repeat | --compare | --min-cosine | --min-top1 | --min-top5 | --min-throughput)
            (($# > 1)) || fail "$option needs a value; see --help" 2
            value=$2
            shift
            case $option in
                --data) data=${value%/} data=${data:-/} ;;
                --checkpoint) checkpoint=$value ;;
                --class-map) class_map=(--class-map "$value") ;;
                --img-size) img_size=$value ;;
                --workdir) workdir=${value%/} workdir=${workdir:-/} ;;
                --backend) backend=$value ;;
                --device) device=$value ;;
                --soc-version) soc_version=$value ;;
                --batch-sizes) batch_sizes=$value ;;
                --batch-size) batch_size=$value ;;
                --precision) precision=$value ;;
                --loop) loop=$value ;;
                --repeat) repeat=$value ;;
                --compare) compare=$value ;;
                --min-cosine) compare_gates+=("$option" "$value") ;;
                --min-top1 | --min-top5) accuracy_gates+=("$option" "$value") ;;
                --min-throughput) throughput_gate=("$option" "$value") perf=1 ;;
            esac
            [[ $option != --min-* || $value =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "$option takes a number, not '$value'" 2
            ;;
        *) fail "unknown option or argument '$option'; see --help" 2 ;;
    esac
    shift
done
[[ $backend =~ ^(auto|ascend|cpu)$ ]] || fail "--backend is auto, ascend or cpu, not '$backend'" 2
[[ $precision =~ ^(float32|int8)$ ]] || fail "--precision is float32 or int8, not '$precision'" 2
if ! [[ $img_size =~ ^[1-9][0-9]*$ ]] || ((img_size % 32)); then fail "--img-size is a multiple of 32, not '$img_size'" 2; fi
[[ $batch_sizes =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail "--batch-sizes is a list such as 1,4,8, not '$batch_sizes'" 2
[[ -z $batch_size || $batch_size =~ ^[1-9][0-9]*$ ]] || fail "--batch-size is a whole number of 1 or more, not '$batch_size'" 2
[[ -z $device || $device =~ ^[0-9]+$ ]] || fail "--device is an NPU's number, not '$device'" 2
[[ $loop =~ ^[1-9][0-9]*$ ]] || fail "--loop is a whole number of 1 or more, not '$loop'" 2
[[ $repeat =~ ^[1-9][0-9]*$ ]] || fail "--repeat is a whole number of 1 or more, not '$repeat'" 2
[[ $compare =~ ^[0-9]+$ ]] || fail "--compare is a number of images, not '$compare'" 2
[[ $workdir != -* ]] || workdir=./$workdir  # no program may take it for an option

# ---- running a step ----------------------------------------------------------------------------------------------------

child="" step_name=set-up

# shellcheck disable=SC2317,SC2329  # the traps call it
stop() {  # status: end the running step's whole process group
    trap '' INT TERM HUP
    if [[ -n $child ]]; then
        disown "$child" 2>/dev/null || true  # or bash reports its end as well
        kill -TERM -- "-$child" 2>/dev/null || true
        for _ in {1..15}; do
            kill -0 -- "-$child" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$child" 2>/dev/null || true
    fi
    printf 'pipeline.sh: stopped during %s; the same command goes on from there\n' "$step_name" >&2
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM HUP

run() {  # command...: run it to its end in a process group of its own; its exit status
    local status=0
    "$@" <&0 &
    child=$!
    wait "$child" || status=$?
    child=""
    return "$status"
}

show() {  # command...: print it so that it can be pasted
    local words=""
    printf -v words ' %q' "$@"
    printf '$%s\n' "${words//\\,/,}"  # %q need not quote commas
}

header() {  # name
    step_name=$1
    printf '\n== %s ==\n' "$step_name"
}

step() {  # command...: show and run the current step's command; a failure ends the pipeline
    show "$@"
    [[ -z $dry_run ]] || return 0
    local start=$SECONDS status=0
    run "$@" || status=$?
    if ((status == 3)); then exit 3; fi  # a gate: the step has said its sentence
    ((status == 0)) || fail "the step '$step_name' failed with exit status $status; what it said stands above"
    printf '(%d s)\n' "$((SECONDS - start))"
}

# ---- set-up and preconditions ------------------------------------------------------------------------------------------

host_python=${PYTHON:-python3}
command -v "$host_python" >/dev/null || fail "Python 3.7 or newer is needed, but there is no '$host_python'; name yours: PYTHON=python3.11 bash scripts/pipeline.sh"

backend_options=(--backend "$backend" --workdir "$workdir" --img-size "$img_size" --soc-version "$soc_version" --device "${device:-0}" --data "$data" --checkpoint "$checkpoint")
if [[ -n $uint8 ]]; then backend_options+=(--uint8); fi
if [[ -n $check ]]; then
    run "$host_python" "$root/scripts/check.py" "${backend_options[@]}"
    exit
fi

images=$data/val_union labels=$data/val_label.txt
if [[ -z $data ]]; then
    data_set="20 sample photos" data=$workdir/sample images=$workdir/sample/val_union labels=$workdir/sample/val_label.txt is_sample=1
else
    is_sample="" data_set=$(basename -- "$data")
    if [[ ! -d $images && -d $data/val ]]; then images=$data/val; fi
    [[ -d $images ]] || fail "--data '$data' should hold a folder val_union/ with the images (or val/ with a folder per class), but holds neither"
    if [[ ! -e $labels ]]; then labels=$workdir/prep_dataset/val_label.txt; fi  # class folders: the first step writes it
fi
: "${checkpoint:=$data/model_best.pth.tar}"
[[ -n $is_sample || -f $checkpoint ]] || fail "the checkpoint '$checkpoint' is not there; name it: --checkpoint FILE"

if [[ -n $dry_run ]]; then
    python=$("$host_python" "$root/scripts/setup_env.py" --dry-run)
    header "Set-up"
    step "$host_python" "${here}scripts/setup_env.py"
    step "$host_python" "${here}scripts/timm_source.py"
else
    mkdir -p -- "$workdir" 2>/dev/null || true
    [[ -d $workdir && -w $workdir ]] || fail "the work folder '$workdir' cannot be made or written; name another: --workdir DIR"
    exec 9>>"$workdir/.lock"  # held by this shell and its steps until the last of them has ended
    "$host_python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null \
        || fail "the work folder '$workdir' is in use by the run with process id $(<"$workdir/.lock"), or by a step of it that has not ended; wait for it or name another: --workdir DIR"
    printf '%s\n' "$$" >"$workdir/.lock"
    run "$host_python" "$root/scripts/setup_env.py" >"$workdir/.python" || exit
    python=$(<"$workdir/.python")
    run "$host_python" "$root/scripts/timm_source.py" || exit
fi
if [[ -z $here ]]; then python=${python#"$root/"}; fi

choice=$("$host_python" "$root/scripts/check.py" --choose "${backend_options[@]}") || exit
backend=${choice%%:*}
printf 'backend: %s\n' "$choice"
if [[ $backend == ascend ]]; then
    [[ $precision == float32 ]] || fail "--precision int8 is for the CPU; on ascend, give atc its own quantisation options" 2
    batch_sizes_needed=,$batch_sizes,
    [[ $batch_sizes_needed == *,"${batch_size:=1}",* ]] || batch_sizes=$batch_size,$batch_sizes
    perf=1
else
    : "${batch_size:=8}"
fi

# ---- the chain ---------------------------------------------------------------------------------------------------------

prepared=$workdir/prep_dataset model=$workdir/tresnet.onnx result=$workdir/result
dtype=() aipp=() made=()
if [[ -n $uint8 ]]; then dtype=(--dtype uint8) aipp=(--aipp "$workdir/aipp.cfg"); fi

infer_on_cpu() {  # model, folder name, further options...
    step "$python" "${here}scripts/infer_onnx.py" --model "$1" --input "$prepared" --output "$workdir" --output_dirname "$2" --outfmt TXT \
        --batchsize "$batch_size" ${aipp[@]+"${aipp[@]}"} ${force[@]+"${force[@]}"} "${@:3}"
}

infer_on_ascend() {  # .om model
    local state=("$python" "${here}scripts/result_state.py" "$1" "$prepared" "$result")
    if [[ -z $dry_run && ${#force[@]} == 0 ]] && "${state[@]}" --is-current; then return; fi
    step rm -rf -- "$result" "${result}_summary.json"  # ais_bench would mix old results and new ones
    step python3 -m ais_bench --model "$1" --input "$prepared" --output "$workdir" --output_dirname result --outfmt TXT ${device:+--device "$device"}
    step "${state[@]}" --record
}

if [[ -n $is_sample ]]; then
    header "Sample data"
    step "$python" "${here}scripts/make_sample.py" "$data"
fi

header "Preprocess"
step "$python" "${here}TResNet_preprocess.py" "$images" "$prepared" --img-size "$img_size" ${dtype[@]+"${dtype[@]}"} \
    ${class_map[@]+"${class_map[@]}"} ${bad[@]+"${bad[@]}"} ${force[@]+"${force[@]}"}
if [[ -n $uint8 ]]; then
    printf '$ sed %q %q > %q\n' "s/224/$img_size/" "${here}scripts/aipp.cfg" "$workdir/aipp.cfg"
    [[ -n $dry_run ]] || sed "s/224/$img_size/" "$root/scripts/aipp.cfg" >"$workdir/aipp.cfg"
fi

header "Export"
step "$python" "${here}TResNet_pth2onnx.py" "$checkpoint" "$model" --img-size "$img_size" ${force[@]+"${force[@]}"}

if [[ $backend == ascend ]]; then
    header "Compile"
    TRESNET_PYTHON=$python step bash "${here}scripts/onnx2om.sh" "$model" --batch-sizes "$batch_sizes" ${soc_version:+--soc-version "$soc_version"} \
        ${aipp[@]+"${aipp[@]}"} ${force[@]+"${force[@]}"}
fi

header "Inference"
if [[ $backend == ascend ]]; then
    infer_on_ascend "${model%.onnx}_bs$batch_size.om"
else
    infer_on_cpu "$model" result
fi
final=$result
if [[ $precision == int8 ]]; then
    header "Quantise"
    step "$python" "${here}scripts/quantize_onnx.py" "$model" "${model%.onnx}_int8.onnx" --calibrate "$prepared" \
        ${aipp[@]+"${aipp[@]}"} ${force[@]+"${force[@]}"}
    infer_on_cpu "${model%.onnx}_int8.onnx" result_int8
    step "$python" "${here}scripts/compare_results.py" "$result" "${result}_int8" --json "$workdir/compare.json"
    made+=(--compared --float32 "$result")
    final=${result}_int8
    model=${model%.onnx}_int8.onnx
fi

header "Accuracy"
if [[ $final != "$result" ]]; then
    step "$python" "${here}TResNet_postprocess.py" "$result/" "$labels" "$workdir" acc_float32.json --prep "$prepared"
fi
step "$python" "${here}TResNet_postprocess.py" "$final/" "$labels" "$workdir" acc.json --prep "$prepared" ${accuracy_gates[@]+"${accuracy_gates[@]}"}

if [[ $backend == ascend ]] && ((compare > 0)); then
    header "Comparison with ONNX Runtime"
    step "$python" "${here}scripts/infer_onnx.py" --model "$model" --input "$prepared" --output "$workdir" --output_dirname result_onnx --outfmt TXT \
        --batchsize 8 --first "$compare" ${aipp[@]+"${aipp[@]}"} ${force[@]+"${force[@]}"}
    step "$python" "${here}scripts/compare_results.py" "${result}_onnx" "$result" --json "$workdir/compare.json" ${compare_gates[@]+"${compare_gates[@]}"}
    made+=(--compared)
fi

if [[ -n $perf ]]; then
    header "Performance"
    if ((${#force[@]})); then keep=(); else keep=(--keep); fi
    step "$python" "${here}scripts/perf_sweep.py" --backend "$backend" --model "$model" --batch-sizes "$batch_sizes" --loop "$loop" --repeat "$repeat" ${keep[@]+"${keep[@]}"} --data-set "$data_set" \
        --accuracy "$workdir/acc.json" --output "$workdir" ${device:+--device "$device"} ${aipp[@]+"${aipp[@]}"} ${throughput_gate[@]+"${throughput_gate[@]}"}
    made+=(--measured)
fi

[[ -z $dry_run ]] || exit 0
step_name=summary
printf '\n== Summary (%d s) ==\n' "$SECONDS"
"$python" "$root/scripts/summary.py" "$workdir" --backend "$backend" --model "$model" --result "$final" ${made[@]+"${made[@]}"} ${is_sample:+--sample}
exit
}
