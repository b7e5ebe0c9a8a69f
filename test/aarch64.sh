#!/usr/bin/env bash
# The program on ARM, tested on another machine: a Debian arm64 root, made by debootstrap and run by
# qemu-user.
#     bash test/aarch64.sh [ROOT]
# As root, on Debian; 20 to 40 minutes the first time; ROOT needs 4 GB. It installs what
# requirements.txt gives a user there, then runs the tests against expected values: the pixels of
# preprocessing, the logits of the network and of the exported graph, the CPU runner, all of
# postprocessing. Arguments after ROOT go to pytest instead.
# ROOT (default: /var/tmp/tresnet-aarch64) stays: the next run only updates the program in it.
set -Eeuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

root=/var/tmp/tresnet-aarch64
if (($#)); then root=$1 && shift; fi
pixels=test/test_pixels.py::test_
logits=test/test_pth2onnx.py::test_
runner=test/test_infer.py::test_
golden=("${pixels}sample_photos_become_the_bytes_of_the_original_environment"
    "${pixels}odd_images_become_the_bytes_of_the_original_environment"
    "${pixels}the_resize_is_that_of_old_pillow_with_any_pillow"
    "${pixels}fast_path_gives_the_golden_bytes_and_leaves_the_unusual_to_pillow"
    "${runner}txt_results_are_ais_benchs_to_the_byte_and_in_natural_order"
    "${runner}bin_and_npy_results_are_raw_float32_and_numpy_files"
    "${runner}the_last_batch_is_filled_up_and_the_filling_dropped"
    "${runner}uint8_images_are_converted_as_the_configuration_says"
    "${logits}the_patched_network_has_the_names_and_logits_of_the_original_environment[tresnet_m]"
    "${logits}golden_logits_through_the_onnx_file[tresnet_m-ascend training checkpoint]"
    test/test_postprocess.py -k "not fuzz")
if (($#)); then golden=("$@"); fi

refuse() {
    echo "aarch64.sh: $1" >&2
    exit 1
}

tools() {
    local lacking=() name
    for name in debootstrap qemu-user-static; do
        dpkg-query --show --showformat='${Status}' "$name" 2>/dev/null |
            grep -q ' installed$' || lacking+=("$name")
    done
    if ((${#lacking[@]})); then
        apt-get update -qq
        apt-get install --yes -qq --no-install-recommends "${lacking[@]}"
    fi
}

emulation() {
    if ! grep -qs enabled /proc/sys/fs/binfmt_misc/qemu-aarch64; then
        mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        /usr/lib/systemd/systemd-binfmt
    fi
    grep -qs enabled /proc/sys/fs/binfmt_misc/qemu-aarch64 ||
        refuse "this kernel does not start ARM programs by qemu-user"
}

debian() {
    if [[ -e $root/.debian-is-there ]]; then return; fi
    local codename packages=python3,python3-venv,python3-pip,python3-dev
    packages+=,gcc,libc6-dev,git,ca-certificates
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    rm -rf -- "$root"
    mkdir -p -- "$root"
    debootstrap --arch=arm64 --variant=minbase --foreign --include="$packages" "$codename" "$root"
    chroot "$root" /debootstrap/debootstrap --second-stage
    touch "$root/.debian-is-there"
}

within() { # a command in the root, with this machine's network and pip settings
    chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        ${PIP_CERT:+PIP_CERT="$PIP_CERT"} ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
        ${PIP_DEFAULT_TIMEOUT:+PIP_DEFAULT_TIMEOUT="$PIP_DEFAULT_TIMEOUT"} \
        bash -c "cd /program && $1"
}

program() {
    mkdir -p -- "$root/program"
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
        tar --extract --directory="$root/program"
    local path # links in the root that lead out of it must not be followed
    for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
        if [[ -e $path ]]; then cp --dereference --remove-destination "$path" "$root$path"; fi
    done
    mountpoint -q "$root/proc" || mount -t proc none "$root/proc"
    mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
}

leave() {
    umount "$root/dev" "$root/proc" 2>/dev/null || true
}

[[ $(id -u) == 0 ]] || refuse "it makes the root folder of another machine; start it as root"
[[ -e /etc/debian_version ]] ||
    refuse "it needs Debian's debootstrap and qemu-user-static; start it on Debian"
tools
emulation
debian
trap leave EXIT
program
within "uname -m && python3 --version \
    && python3 scripts/setup_env.py && python3 scripts/timm_source.py \
    && .venv/bin/python -m pip install --quiet pytest hypothesis \
    && .venv/bin/python -m pip list --format=freeze"
within "nvidia=\$(.venv/bin/python -m pip list --format=freeze | grep -ci nvidia || true)
    echo \"CUDA packages: \$nvidia\" && [[ \$nvidia == 0 ]]"
printf -v words '%q ' "${golden[@]}"
# One photo: emulated, the network takes minutes for each.
within "GOLDEN_PHOTOS=1 OMP_NUM_THREADS=2 .venv/bin/python -m pytest -v $words"
