#!/usr/bin/env bash
# `npm run release:local`: what .github/workflows/release.yml does for Linux, on one linux-x64 machine, up to publishing.
# Builds every Linux addon in a clean copy of the working tree, packs, and checks the tarball as a consumer meets it.
# Leaves the tarball in build/release. Takes some ten minutes; with nvcc some thirty.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

release=$PWD/build/release
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- --ignore-failed-read | tar -x -C "$copy"

cd "$copy"
npm ci --ignore-scripts --no-audit --no-fund
npm run build:prebuilt -- linux
npm run build:ts
mkdir -p "$release"
npm pack --ignore-scripts --pack-destination "$release" >/dev/null
node scripts/check-package.cjs "$release"/hogwild-"$(node -p 'require("./package.json").version')".tgz
