# SPDX-License-Identifier: MIT
# Machines for the tests of imgvm: `. "$SRCDIR/tests/cli/guest.sh"`. Skips where there is no KVM or no imgvm.
IMGVM=${IMGVM:-$(dirname "$IMGTOOL")/imgvm}
[[ -x $IMGVM ]] || skip "imgvm was not built"
[[ -r /dev/kvm && -w /dev/kvm ]] || skip "/dev/kvm cannot be opened: no machine can run here"
need as ld objcopy
# not where another test's machines are
export XDG_RUNTIME_DIR=$PWD/runtime
mkdir -m 700 "$XDG_RUNTIME_DIR"

imgvm()
{
	"$IMGVM" "$@"
}

as --32 -o guest.o "$SRCDIR/tests/cli/guest.S"
ld -m elf_i386 -Ttext 0 -e start -o guest.elf guest.o
objcopy -O binary guest.elf guest.rom
rm guest.o guest.elf

# start ARGUMENTS...: a machine in the background, $machine; what it prints goes to serial, events and messages to log. What
# `tell` says is its input.
start()
{
	rm -f input serial log
	mkfifo input
	touch serial log
	"$IMGVM" run --bios guest.rom --memory 8M --timeout 100 --json --serial serial "$@" <input >log 2>&1 &
	machine=$!
	exec 7>input
	wait_for 20 eval 'grep -q "\"started\"" log || ! kill -0 $machine 2>/dev/null'
	grep -q '"started"' log || fail "no machine: $(cat log)"
}

tell()
{
	printf '%s' "$1" >&7
}

# hear TEXT: until the guest has printed it.
hear()
{
	wait_for 20 grep -q "$1" serial
}

# ends STATUS: the machine ends, with this exit status.
ends()
{
	local status=0
	wait "$machine" || status=$?
	exec 7>&-
	((status == $1)) || fail "the machine ended with $status, not $1: $(cat log)"
}

# What differs from run to run.
times()
{
	sed -E -e 's/[0-9.]+ (ms|s)\b/T \1/g' -e 's/[0-9.]+ (KiB|MiB|bytes)( of memory)/SIZE\2/' -e 's/^(pid: +)[0-9]+/\1PID/' \
		-e 's/^(sandbox: +).*/\1WHAT THERE IS/'
}
