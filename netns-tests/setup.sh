#!/usr/bin/env bash
# Installs the Debian packages that the demo and the tests use. Root does it with apt; anybody else
# is told what is missing, and may go on: what cannot run says that it was skipped.
set -euo pipefail

packages=(
  build-essential                                   # rustc's linker, and the tests' C programs
  iproute2 nftables tcpdump iputils-ping ethtool    # hosts, firewalls, captures, offloads
  openssh-client rsync procps util-linux            # ssh, scp and rsync across the LAN
  socat iperf3 python3 python3-pip                  # UDP and TCP programs; PyPI's MPICH
  netpipe-tcp                                       # one of the bench's measures
  wireguard-tools wireguard-go                      # a plain WireGuard member
  pvm pvm-dev pvm-examples netpipe-pvm              # PVM
  openmpi-bin libopenmpi-dev netpipe-openmpi        # Open MPI
  mpich libmpich-dev                                # MPICH
  lam-runtime lam4-dev netpipe-lam                  # LAM/MPI
)

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is no Debian; the programs needed come in Debian's ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
else
  echo "setup: not installed: ${missing[*]}" >&2
  echo "setup: run: sudo apt-get install ${missing[*]}" >&2
fi
