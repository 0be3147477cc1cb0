#!/usr/bin/env bash
# Runs `clusternet demo` as an ordinary user. Root makes a user for it, and removes it afterwards,
# unless DEMO_USER names one.
set -euo pipefail

binaries=$(realpath "${1:?usage: demo.sh DIRECTORY}")
if [ "$(id -u)" -ne 0 ]; then
  exec "$binaries/clusternet" demo
fi

user=${DEMO_USER:-}
directory=
cleanup() {
  status=$?
  [ -z "$directory" ] || rm -rf "$directory"
  if [ -n "${made:-}" ]; then userdel --remove "$made" 2>/dev/null || true; fi
  exit $status
}
trap cleanup EXIT
if [ -z "$user" ]; then
  user=clusternet-demo-$$
  echo "demo: PVM, Open MPI and LAM refuse to run as root: making the user $user"
  useradd --create-home --shell /bin/bash "$user"
  made=$user
fi
# The user may not be able to read the directory where root builds.
directory=$(mktemp -d /tmp/clusternet-demo.XXXXXX)
chmod 755 "$directory"
install -m 755 -t "$directory" "$binaries/clusternet" "$binaries/clusternetd"
runuser --login "$user" -c "$directory/clusternet demo"
