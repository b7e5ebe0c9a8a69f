#!/usr/bin/env bash
# The Dockerfile's RUN lines in a Debian root instead of an image of CANN; then the first command.
#     bash test/container.sh [ROOT]
# As root, on Debian; about 10 minutes; ROOT (default: /var/tmp/tresnet-container) needs 3 GB and is
# removed at the end. The root has what an image of CANN has too: Python with venv, and a compiler.
# Afterwards root and another user run the pipeline on the checkout, which is read-only by then.
set -Eeuo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

root=${1-/var/tmp/tresnet-container}

within() { # USER COMMAND…
    local user=$1
    shift
    chroot --userspec="$user" "$root" env --ignore-environment HOME=/data LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "${settings[@]}" "$@"
}

if ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    apt-get install --yes -qq --no-install-recommends debootstrap
fi
debootstrap --variant=minbase \
    --include=python3,python3-venv,python3-pip,gcc,libc6-dev,ca-certificates \
    bookworm "$root" >"${TMPDIR:-/tmp}/debootstrap.log"
trap 'umount --quiet "$root"/opt/find-links "$root"/proc "$root"/dev "$root"/opt/tresnet || true
    rm -rf --one-file-system -- "$root"' EXIT
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
settings=(PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
mkdir -p "$root/opt/tresnet" "$root/opt/find-links" "$root/data"
if [[ -d ${PIP_FIND_LINKS-} ]]; then # this machine's own wheels
    mount --bind "$PIP_FIND_LINKS" "$root/opt/find-links"
    settings+=(PIP_FIND_LINKS=/opt/find-links)
fi
git archive HEAD | tar --extract --directory="$root/opt/tresnet" # COPY

# A RUN line goes on after a backslash.
sed ':join; /\\$/ { N; s/\\\n//; b join }' Dockerfile | sed --quiet 's/^RUN //p' |
    while IFS= read -r command; do
        echo "RUN $command"
        within root bash -euc "$command" </dev/null
        cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" # apt made its own
    done

mount --bind "$root/opt/tresnet" "$root/opt/tresnet"
mount -o remount,ro,bind "$root/opt/tresnet"
chmod 750 "$root/data"
within root bash -c 'cd /data && bash /opt/tresnet/scripts/pipeline.sh --workdir as-root'
chown -R 1234:1234 "$root/data"
within 1234:1234 bash -c 'cd /data && bash /opt/tresnet/scripts/pipeline.sh --workdir as-user'
if [[ -e $root/data/tresnet-venv ]]; then
    echo "the image's environment was not used: another one was made beside the work folder" >&2
    exit 1
fi
echo "the container recipe works as root and as a user"
