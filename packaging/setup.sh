#!/usr/bin/env bash
# Installs what building, running and testing Tocsin needs: system packages, then .venv.
#
#   packaging/setup.sh                 both; the second time it does nothing, quickly
#   packaging/setup.sh --system-only   the packages only
#   packaging/setup.sh --lenient       packages that cannot be installed are named, and .venv is made anyway
#
# PYTHON names the interpreter that .venv is made from (default: python3).
# Exit codes: 0 done, 2 wrong usage, 4 packages are missing and this user cannot
# install them, 5 no Python 3.11 or newer; anything else comes from apt-get or pip.
set -euo pipefail

readonly OLDEST_PYTHON=3.11
readonly EXIT_USAGE=2 EXIT_NOT_ROOT=4 EXIT_PYTHON=5
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly root=$PWD

say() { printf 'setup: %s\n' "$*" >&2; }

python_in_use() { # .venv's own, else the one that it will be made from; empty when there is none
	if [[ -x .venv/bin/python ]]; then
		echo .venv/bin/python
	else
		command -v "${PYTHON:-python3}" || true
	fi
}

check_python() {
	local python=$1 version
	version=$("$python" -ISc 'import sys; print("%d.%d" % sys.version_info[:2])') || version=unknown
	if [[ $version == unknown || $(printf '%s\n' "$OLDEST_PYTHON" "$version" | sort -V | head -n 1) != "$OLDEST_PYTHON" ]]; then
		say "$python is Python $version, Tocsin needs $OLDEST_PYTHON or newer (Debian 12, Ubuntu 24.04 and later have it)."
		say "Name another one: PYTHON=/path/to/python3.12 packaging/setup.sh"
		exit "$EXIT_PYTHON"
	fi
}

needed_packages() { # one a line
	local python=$1 id=
	[[ ! -r /etc/os-release ]] || id=$(. /etc/os-release && echo "${ID:-}")
	printf '%s\n' clang llvm libbpf-dev libelf-dev zlib1g-dev libc6-dev libseccomp2 make git iproute2
	if [[ $id == ubuntu ]]; then echo linux-tools-common; else echo bpftool; fi
	printf '%s\n' libbpfcc # the source bcc; its compiler comes with it
	# Tests on other kernels.
	[[ $(uname -m) != x86_64 ]] || printf '%s\n' qemu-system-x86 debian-archive-keyring
	# Only the distribution's own Python is shipped without ensurepip.
	case $(readlink -f "${python:-/usr/bin/python3}") in
	/usr/bin/*) printf '%s\n' python3 python3-venv ;;
	esac
}

missing_packages() { # those of the arguments that are not installed, in one query
	local installed
	installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
	local package
	for package in "$@"; do
		[[ $'\n'$installed$'\n' == *$'\n'"$package installed"$'\n'* ]] || echo "$package"
	done
}

apt_install() {
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

system() {
	local lenient=$1 python
	python=$(python_in_use)
	[[ -z $python ]] || check_python "$python"
	local needed missing # names, so splitting at blanks is what is wanted
	needed=($(needed_packages "$python"))
	if ! command -v dpkg-query >/dev/null; then
		say "this is neither Debian nor Ubuntu; make sure that you have what they call: ${needed[*]}"
		return 0
	fi
	missing=($(missing_packages "${needed[@]}"))
	((${#missing[@]})) || return 0
	if [[ $(id -u) != 0 ]]; then
		say "missing packages: ${missing[*]}. Run this, then try again:"
		printf '    sudo apt-get install --no-install-recommends -y %s\n' "${missing[*]}" >&2
		((lenient)) || exit "$EXIT_NOT_ROOT"
		return 0
	fi
	say "installing ${missing[*]}"
	if compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null && apt_install "${missing[@]}"; then
		:
	elif apt-get update -qq && apt_install "${missing[@]}"; then
		:
	elif ((lenient)); then
		say "apt-get could not install ${missing[*]}: going on without"
		return 0
	else
		exit 1
	fi
	check_python "$(python_in_use)"
}

venv() {
	local stamp key python
	if [[ -L .venv ]]; then
		return 0 # another folder's: a worktree borrows it
	fi
	stamp=.venv/.stamp
	key="$(sha256sum <pyproject.toml) $root" # scripts in .venv carry the folder's name
	if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$key" ]]; then
		return 0
	fi
	python=$(command -v "${PYTHON:-python3}") || {
		say "no ${PYTHON:-python3} in PATH"
		exit "$EXIT_PYTHON"
	}
	if [[ ! -x .venv/bin/pip ]]; then
		check_python "$python"
		say "making .venv from $python"
		"$python" -m venv --clear .venv >&2 || exit "$EXIT_NOT_ROOT"
	elif [[ -f $stamp && $(<"$stamp") != *" $root" ]]; then
		say "the folder has moved: making .venv anew"
		"$python" -m venv --clear .venv >&2
	fi
	say "installing Tocsin and its tools into .venv"
	.venv/bin/python -m pip install -qq --upgrade 'pip>=25.1' # the first that knows --group
	.venv/bin/python -m pip install -qq --group dev -e '.[author]'
	printf '%s\n' "$key" >"$stamp.new"
	mv "$stamp.new" "$stamp"
}

lenient=0 with_venv=1
for argument in "$@"; do
	case $argument in
	--system-only) with_venv=0 ;;
	--lenient) lenient=1 ;;
	*)
		sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
		exit "$EXIT_USAGE"
		;;
	esac
done
system "$lenient"
((!with_venv)) || venv
