# Shared by the scripts: what a machine needs, where builds go, and how to say what is being done.
# shellcheck shell=bash

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/quorate

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# CI clones afresh each time: its target folder stays outside the checkout.
if [ -n "${CI:-}" ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR=$cache/target
fi
target=${CARGO_TARGET_DIR:-$root/target}

# install_packages PACKAGE...: by apt when we may, otherwise says exactly what to install.
install_packages() {
  local as=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "please install these packages: $*"
    as=(sudo)
  fi
  command -v apt-get >/dev/null || die "please install what Debian calls: $*"
  say "installing $*"
  "${as[@]}" apt-get install -y -q "$@" >&2 || { "${as[@]}" apt-get update -q >&2 && "${as[@]}" apt-get install -y -q "$@" >&2; }
}

# What the build needs: cargo, a C++ compiler, and libclang for RocksDB's bindings.
ensure_toolchain() {
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH=$HOME/.cargo/bin:$PATH
  fi
  command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer with rustup (https://rustup.rs), then run this again"
  local missing=()
  command -v g++ >/dev/null || missing+=(g++)
  ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1 \
    && ls -d /usr/lib/llvm-*/lib/clang/*/include >/dev/null 2>&1 || missing+=(libclang-dev)
  [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

# What fault runs use where it is there, and say that they skip where it is not: libfaketime, for wall clocks.
offer_faults() {
  if ! compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null && ! compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null; then
    (install_packages faketime) || say "going on without faketime: faults of clocks will be skipped"
  fi
}

# RocksDB takes a quarter of an hour of C++: it is built once per version and kept for every checkout and profile.
ensure_rocksdb() {
  local version
  version=$(awk '$0 == "name = \"librocksdb-sys\"" { getline; gsub(/version = |"/, ""); print }' "$root/Cargo.lock")
  local kept=$cache/rocksdb-$version
  if [ ! -f "$kept/librocksdb.a" ]; then
    say "building RocksDB $version, once for this machine (about 25 CPU-minutes: 12 minutes on two cores)"
    (cd "$root" && CARGO_TARGET_DIR=$cache/rocksdb-build cargo build --locked --release -p librocksdb-sys) &
    show_progress $! "$cache/rocksdb-build/release/build" 343 || die "RocksDB did not build"
    mkdir -p "$kept.part"
    cp "$(ls -t "$cache"/rocksdb-build/release/build/librocksdb-sys-*/out/librocksdb.a | head -n 1)" "$kept.part/"
    rm -rf "$kept" && mv "$kept.part" "$kept"
    rm -rf "$cache/rocksdb-build"
  fi
  export ROCKSDB_LIB_DIR=$kept ROCKSDB_STATIC=1
}

# show_progress PID FOLDER TOTAL: counts object files while the process runs; its exit status is ours.
show_progress() {
  local pid=$1 folder=$2 total=$3 seconds=0
  while kill -0 "$pid" 2>/dev/null; do
    sleep 5
    seconds=$((seconds + 5))
    if [ $((seconds % 60)) -eq 0 ]; then
      say "RocksDB: $(find "$folder" -name '*.o' 2>/dev/null | wc -l) of about $total files compiled after $((seconds / 60)) min"
    fi
  done
  wait "$pid"
}

# build PROFILE: the binaries `quorate-node` and `quorate`; sets $bin to where they are.
build() {
  local profile=$1
  ensure_toolchain
  ensure_rocksdb
  say "building quorate ($profile)"
  (cd "$root" && cargo build --locked --profile "$profile" --bins)
  bin=$target/$([ "$profile" = dev ] && echo debug || echo "$profile")
}
