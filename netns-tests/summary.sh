#!/usr/bin/env bash
# The last words of `make test`: what did not run here, and why.
set -euo pipefail

log=${1:?usage: summary.sh LOG}
skipped=$(grep -aoE '(^|\.\.\. )skipped: .*' "$log" | sed 's/^\.\.\. //' | sort | uniq -c | sort -rn || true)
failed=$(grep -acE '^test .* FAILED' "$log" || true)
passed=$(grep -acE '^test .* \.\.\. ok' "$log" || true)
echo
echo "$passed tests passed, $failed failed."
if [ -n "$skipped" ]; then
  echo "Not run on this machine (how many, why):"
  echo "$skipped"
else
  echo "Nothing was skipped."
fi
