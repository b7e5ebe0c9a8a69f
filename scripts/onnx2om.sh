#!/usr/bin/env bash
# Compile an ONNX file for an Ascend chip with CANN's atc: one .om per batch size.
set -Eeuo pipefail

usage() {
    cat <<'END'
Compile an ONNX file for an Ascend chip with CANN's atc: one .om per batch size.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    bash scripts/onnx2om.sh tresnet_m.onnx
    bash scripts/onnx2om.sh tresnet_m.onnx --batch-sizes 1,8 --soc-version Ascend310P3 --output-dir work
    bash scripts/onnx2om.sh tresnet_m.onnx -- --precision_mode=force_fp32

  MODEL.onnx             one input, NCHW, with a free batch size (TResNet_pth2onnx.py makes it)
  --batch-sizes LIST     default 1,4,8,16,32
  --soc-version NAME     e.g. Ascend310P3; default: the chip that `npu-smi info` names
  --output-dir FOLDER    where MODEL_bs1.om, MODEL_bs4.om, ... go; default: beside the ONNX file
  --aipp FILE            AIPP settings (atc's --insert_op_conf), for models that are to be fed with uint8
  --force                compile also what is up to date
  --dry-run              print the commands, run none
  -- ARGUMENTS           go to atc unchanged, after its other arguments; give files in them by their absolute paths

MODEL_bs1.om.json beside each model holds the command that made it: a model that is newer than the ONNX file and was made by
the same command is kept. MODEL_bs1.atc.log holds what atc said. TRESNET_PYTHON names the Python that has the package onnx
(default: .venv); atc itself runs with the PATH as it is.
END
}

die() {
    printf 'onnx2om.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=
batch_sizes=1,4,8,16,32
soc_version=
output_dir=
aipp=
force=
dry_run=
extra=()
private=  # the folder in which atc runs
atc_pid=

# Options ------------------------------------------------------------------------------------------------------------
parse_options() {
    local name value
    while (($#)); do
        case $1 in
            --) shift; extra=("$@"); break ;;
            -h | --help) usage; exit 0 ;;
            --force) force=1; shift; continue ;;
            --dry-run) dry_run=1; shift; continue ;;
            --*=*) name=${1%%=*}; value=${1#*=}; shift ;;
            --*) name=$1; (($# > 1)) || die "$1 needs a value; see --help" 2; value=$2; shift 2 ;;
            *) [[ -z $model ]] || die "expected one ONNX file, found another argument: $1; see --help" 2
               model=$1; shift; continue ;;
        esac
        case $name in
            --batch-sizes) batch_sizes=$value ;;
            --soc-version) soc_version=$value ;;
            --output-dir) output_dir=$value ;;
            --aipp) aipp=$value ;;
            *) die "unknown option $name; see --help (arguments for atc go after --)" 2 ;;
        esac
    done
    [[ -n $model ]] || die "expected an ONNX file; see --help" 2
    [[ $batch_sizes =~ ^[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*$ ]] ||
        die "--batch-sizes must be whole numbers joined by commas, such as 1,4,8, but is '$batch_sizes'" 2
    [[ -z $soc_version || $soc_version =~ ^[A-Za-z0-9_-]+$ ]] || die "--soc-version must be a name such as Ascend310P3" 2
}

# Print the absolute path of a file or folder that exists; refuse what atc and ais_bench refuse in a path.
absolute() {
    local path
    path=$(cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
    (LC_ALL=C; [[ $path =~ ^[A-Za-z0-9_./-]+$ ]]) ||
        die "atc and ais_bench accept only letters, digits, '_', '.', '-' and '/' in a path, so move or rename $(printf %q "$path")"
    printf '%s\n' "$path"
}

check_paths() {
    [[ -f $model && -r $model ]] || die "there is no readable ONNX file $(printf %q "$model"); make it with TResNet_pth2onnx.py"
    [[ $model == *.onnx ]] || die "expected a file that ends in .onnx, found $(printf %q "$model")"
    model=$(absolute "$model")
    output_dir=${output_dir:-$(dirname -- "$model")}
    if [[ -z $dry_run ]]; then
        [[ -d $output_dir ]] || (umask 0027 && mkdir -p -- "$output_dir") ||
            die "the folder $(printf %q "$output_dir") cannot be made; name another by --output-dir"
        [[ -w $output_dir ]] || die "the folder $(printf %q "$output_dir") is not writable; name another by --output-dir"
        output_dir=$(cd -- "$output_dir" && pwd)
        output_dir=$(absolute "$output_dir")
    fi
    if [[ -n $aipp ]]; then
        [[ -f $aipp && -r $aipp ]] || die "there is no readable AIPP file $(printf %q "$aipp")"
        aipp=$(absolute "$aipp")
    fi
    local argument
    for argument in ${extra[@]+"${extra[@]}"}; do
        [[ $argument != --*=[!/]* || ! -e ${argument#*=} ]] ||
            die "atc runs in a folder of its own, so give the file in $(printf %q "$argument") by its absolute path"
    done
}

choose_python() {
    python=${TRESNET_PYTHON:-}
    if [[ -z $python ]]; then
        python=$here/../.venv/bin/python
        [[ -x $python ]] || python=python3
    fi
    command -v "$python" >/dev/null || die "there is no Python at $python; set TRESNET_PYTHON to one that has the package onnx"
}

check_atc() {
    local script
    command -v atc >/dev/null && return
    for script in {/usr/local/Ascend,"${HOME:-}/Ascend"}/{ascend-toolkit,cann}/set_env.sh; do
        if [[ -f $script ]]; then
            die "there is no atc on the PATH; put CANN's there: source $script"
        fi
    done
    die "there is no atc on the PATH; install CANN's toolkit, then: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
}

# Compilation --------------------------------------------------------------------------------------------------------
# Kill atc with all that it started: it is the leader of a process group of its own.
stop_atc() {
    [[ -n $atc_pid ]] || return 0
    kill -TERM -- "-$atc_pid" 2>/dev/null || true
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 -- "-$atc_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$atc_pid" 2>/dev/null || true
    atc_pid=
}

clean_up() {
    { stop_atc; } 2>/dev/null
    [[ -z $private ]] || rm -rf -- "$private"
    private=
}

interrupted() {
    trap '' INT TERM
    exec 2>&3  # the signal may come while stderr is turned off
    clean_up
    die "interrupted; the model being compiled is dropped, finished ones are kept" 130
}

# Leftovers of runs that were killed: their number is that of a process which is gone.
remove_leftovers() {
    local folder
    for folder in "$output_dir"/*.atc-run-*; do
        [[ -d $folder ]] || continue
        kill -0 "${folder##*-}" 2>/dev/null || rm -rf -- "$folder"
    done
}

# Set `command` to the contract's words; $1 batch size, $2 output.
build_command() {
    command=(atc --framework=5 "--model=$model" "--output=$2" --input_format=NCHW "--input_shape=$input:$1,$shape"
             --log=error "--soc_version=$soc_version")
    if [[ -n $aipp ]]; then command+=("--insert_op_conf=$aipp"); fi
    command+=(${extra[@]+"${extra[@]}"})
}

print_command() {
    local word line=
    for word in "${command[@]}"; do
        if [[ $word == --input_shape=* ]]; then
            line+=" --input_shape=\"${word#*=}\""  # quoted as everybody writes it
        else
            line+=" $(printf %q "$word")"
        fi
    done
    printf '%s\n' "${line# }"
}

# Run `command` in $private; its words go to the log $1. Sets `status`.
run_atc() {
    status=0
    set -m  # a process group of its own for atc and the compilers it starts
    (cd "$private" && ASCEND_PROCESS_LOG_PATH=$private/log exec "${command[@]}") >"$1" 2>&1 </dev/null 3>&- &
    atc_pid=$!
    set +m
    { wait "$atc_pid" || status=$?; } 2>/dev/null  # without bash's own line about a killed job
    { stop_atc; } 2>/dev/null
    if [[ -d $private/log ]]; then  # CANN's own log, more detailed than what it prints
        find "$private/log" -type f -name '*.log' -exec cat {} + >>"$1" || true
    fi
}

explain_failure() {
    local reason
    if ((status > 128 && status < 128 + 32)); then
        printf 'onnx2om.sh: atc was ended by signal %s at batch size %s' "$(kill -l $((status - 128)))" "$1"
        printf '; if nobody did that, the memory may have been full\n'
    elif ((status)); then
        printf 'onnx2om.sh: atc failed with status %d at batch size %s\n' "$status" "$1"
    else
        printf 'onnx2om.sh: atc ended well at batch size %s, but wrote no %s.om (nor %s_linux_*.om)\n' "$1" "$name" "$name"
    fi
    reason=$("$python" "$here/onnx2om.py" explain "$log")
    [[ -z $reason ]] || printf '%s\n' "$reason"
    if ! python3 -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null; then
        printf '    atc compiles with the python3 on the PATH, and that is a virtual environment'\''s (%s): deactivate it\n' \
            "$(command -v python3)"
    fi
    printf '    the full log: %s\n' "$log"
}

# Compile for one batch size, or keep what is there.
compile() {
    local batch=$1 name om log found started size
    name=$(basename "$model" .onnx)_bs$batch
    om=$output_dir/$name.om
    log=$output_dir/$name.atc.log
    if [[ -n $dry_run ]]; then
        build_command "$batch" "$output_dir/$name"
        print_command
        return
    fi
    build_command "$batch" "$name"
    if [[ -z $force ]] && size=$("$python" "$here/onnx2om.py" is-fresh "$om" "$model" -- "${command[@]}"); then
        printf '%s is up to date (%s)\n' "$om" "$size"
        return
    fi
    printf '%s: compiling for %s ...\n' "$om" "$soc_version"
    private=$output_dir/$name.atc-run-$$
    { mkdir -m 0750 -- "$private" && : >"$log"; } || die "nothing can be written to $output_dir; see the line above"
    started=$SECONDS
    run_atc "$log"
    found=$(find "$private" -maxdepth 1 -type f -size +0 \( -name "$name.om" -o -name "${name}_linux_*.om" \) -print -quit)
    if ((status)) || [[ -z $found ]]; then
        explain_failure "$batch" >&2
        exit 1
    fi
    chmod 0640 -- "$found"  # ais_bench refuses a model that others can write
    rm -f -- "$om.json"
    mv -f -T -- "$found" "$om" || die "the finished model cannot be put to $om; see the line above"
    size=$("$python" "$here/onnx2om.py" record "$om" "$model" -- "${command[@]}")
    clean_up
    printf '%s: compiled in %d s, %s\n' "$om" $((SECONDS - started)) "$size"
}

main() {
    local words batch fixed batches
    exec 3>&2
    parse_options "$@"
    check_paths
    choose_python
    [[ -n $dry_run ]] || check_atc
    words=$("$python" "$here/onnx2om.py" describe "$model") || exit 1
    input=${words% *}
    fixed=${words##* }
    shape=${fixed#*,}
    fixed=${fixed%%,*}
    if [[ -z $soc_version ]]; then
        soc_version=$("$python" "$here/npu_info.py" --soc-version) || exit 1
    fi
    IFS=, read -r -a batches <<<"$batch_sizes"
    if [[ $fixed != N && $batch_sizes != "$fixed" ]]; then
        die "the batch size of $model is fixed to $fixed, so give --batch-sizes $fixed, or export it with a free one"
    fi
    trap interrupted INT
    trap 'trap "" INT TERM; clean_up; exit 143' TERM
    trap clean_up EXIT
    if [[ -z $dry_run ]]; then
        remove_leftovers
    fi
    for batch in "${batches[@]}"; do
        compile "$batch"
    done
}

main "$@"
