# SPDX-License-Identifier: MIT
# What the tests have in common. A test stops at the first command that fails unexpectedly.
set -eu -o pipefail

# For background processes, which a shell function would hide behind a subshell: "${tool[@]}" VERB...
read -ra tool <<<"${IMGTOOL_WRAPPER:-} $IMGTOOL"

imgtool()
{
	"${tool[@]}" "$@"
}

# run COMMAND...: shows the command, its output and its exit status unless that is 0. Never ends the test.
run()
{
	local status=0
	printf '$'
	printf ' %q' "$@"
	printf '\n'
	"$@" || status=$?
	((status == 0)) || echo "[exit $status]"
}

# expect STATUS COMMAND...: the command must end with this status; its output goes to the files out and err.
expect()
{
	local want=$1 status=0
	shift
	"$@" >out 2>err || status=$?
	((status == want)) && return
	echo "expected exit $want, got $status: $*"
	head -n 20 out err
	exit 1
}

fail()
{
	echo "FAILED: $*"
	exit 1
}

skip()
{
	echo "$*"
	exit 77
}

need()
{
	local program
	for program; do
		command -v "$program" >/dev/null || skip "$program is not installed"
	done
}

# random_bytes SEED COUNT: reproducible incompressible bytes on stdout.
random_bytes()
{
	/usr/bin/python3 -c 'import random, sys
r = random.Random(int(sys.argv[1])); left = int(sys.argv[2])
while left:
    n = min(left, 1 << 20)
    sys.stdout.buffer.write(r.randbytes(n))
    left -= n' "$1" "$2"
}

# flip FILE OFFSET: changes one byte.
flip()
{
	local old
	old=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf %b "$(printf '\\x%02x' $((old ^ 0x5a)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

sha()
{
	sha256sum "$1" | cut -d' ' -f1
}

# json EXPRESSION: evaluates a Python expression over the JSON on stdin, as `d`.
json()
{
	/usr/bin/python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for()
{
	local tries=$(($1 * 50))
	shift
	until "$@"; do
		((tries-- > 0)) || fail "timed out: $*"
		sleep 0.02
	done
}

# The independent reader, written from the format's document.
reader()
{
	/usr/bin/python3 "$SRCDIR/tests/interop/limg_reader.py" "$@"
}

# sound FILE...: our check and the independent reader find nothing.
sound()
{
	local file
	for file; do
		expect 0 imgtool check -q "$file"
		reader verify "$file" >reader.log || { cat reader.log; fail "the reader finds fault with $file"; }
		rm reader.log
	done
}

# content FILE[@SNAP]: digest of what the guest sees, on which we and the independent reader must agree.
content()
{
	local ours
	ours=$(imgtool checksum -q "$1" | cut -d' ' -f1)
	[[ $(reader hash "$1" | cut -d' ' -f1) == "$ours" ]] || fail "the reader reads $1 otherwise"
	echo "$ours"
}

# same NAME HAVE WANT
same()
{
	[[ $2 == "$3" ]] || fail "$1: have $2, want $3"
}
