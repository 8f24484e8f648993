#!/usr/bin/env bash
# Make a release from a clean main: checks, tests, packages, tag. It publishes nothing; it prints what to do for that.
#
#     scripts/release.sh 0.2.0
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
die() {
    echo "release: $*" >&2
    exit 1
}

version=${1:-}
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "name the version, as in: scripts/release.sh 0.2.0"
[ -z "$(git status --porcelain)" ] || die "the checkout has changes that are not committed"
[ "$(git branch --show-current)" = main ] || die "releases are made from main"
grep -qx "version = \"$version\"" pyproject.toml || die "pyproject.toml has another version than $version"
grep -q "^version: $version$" CITATION.cff || die "CITATION.cff has another version than $version"
grep -qE "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md ||
    die "CHANGELOG.md has no section '## [$version] - YYYY-MM-DD'"
git rev-parse -q --verify "refs/tags/v$version" >/dev/null && die "the tag v$version is there already"

scripts/test.sh
rm -rf build/release
.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/release .
git tag -a "v$version" -m "neuraldb-faiss $version"
echo "tagged v$version; the wheel is in build/release. To publish: git push origin main v$version, and upload the wheel"
