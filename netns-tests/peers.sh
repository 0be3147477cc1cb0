#!/usr/bin/env bash
# Gets the tunnels that `make bench` runs beside ours, once, into the directory given: two from crates.io, and two of
# Debian's packages unpacked there, so that nothing of them is installed on this machine. What cannot be had is named,
# and the bench does without it.
set -euo pipefail

directory=${1:?usage: peers.sh DIRECTORY}
mkdir -p "$directory/bin"
directory=$(cd "$directory" && pwd)

# from_crates CRATE VERSION BINARY
from_crates() {
  [ -x "$directory/bin/$3" ] && return
  echo "peers: building $1 $2 (a few minutes, once)"
  if ! nice "${CARGO:-cargo}" install --quiet --locked "$1" --version "$2" --root "$directory" --target-dir "$directory/build" \
    2>"$directory/$1.log"; then
    echo "skipped: cargo cannot install $1: $(tail -n 1 "$directory/$1.log")"
  fi
}

# unpack SUITE DIRECTORY PACKAGE...: Debian's packages of a suite, from the mirror this machine uses, unpacked
# into DIRECTORY; lists and downloads are our own.
unpack() {
  local suite=$1 to=$2 mirror own
  shift 2
  if ! command -v apt-get dpkg-deb >/dev/null; then
    echo "no apt here"
    return 1
  fi
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' |
    awk '$3 == "main" && $2 !~ /-/ && $1 !~ /security/ { print $1; exit }')
  if [ -z "$mirror" ]; then
    echo "no mirror of Debian's is configured; run: apt-get update"
    return 1
  fi
  own=$(mktemp -d)
  mkdir -p "$own/lists/partial" "$own/cache/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$own/sources.list"
  if (
    cd "$own"
    # Its own list, and none of the machine's; the machine's keys vouch for it. No sandbox: _apt cannot write here.
    options=(-qq -o "Dir::Etc::sourcelist=$own/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$own/lists"
      -o "Dir::Cache=$own/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none)
    apt-get "${options[@]}" update && apt-get "${options[@]}" download "$@"
  ) >"$own/log" 2>&1; then
    mkdir -p "$to"
    for package in "$own"/*.deb; do dpkg-deb --extract "$package" "$to"; done
    rm -rf "$own"
  else
    tail -n 1 "$own/log"
    rm -rf "$own"
    return 1
  fi
}

from_crates boringtun-cli 0.7.1 boringtun-cli
from_crates gotatun-cli 0.10.2 gotatun

if [ ! -x "$directory/bin/wireguard-go-trixie" ]; then
  if said=$(unpack trixie "$directory/trixie" wireguard-go); then
    ln -sf ../trixie/usr/bin/wireguard-go "$directory/bin/wireguard-go-trixie"
  else
    echo "skipped: wireguard-go of Debian trixie cannot be had: $said"
  fi
fi

# Unpacked, not installed: a package's server would start by itself on this machine.
if ! command -v sshd >/dev/null && [ ! -x /usr/sbin/sshd ] && [ ! -x "$directory/sshd/usr/sbin/sshd" ]; then
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
  said=$(unpack "$suite" "$directory/sshd" openssh-server libwrap0) ||
    echo "skipped: sshd cannot be had: $said"
fi
