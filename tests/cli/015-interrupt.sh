# An interruption ends a verb as the signal ends a program, but without a destination, without litter, with the source untouched.
# long enough to be interrupted, also under a wrapper that makes everything slow
random_bytes 5 $((${IMGTOOL_WRAPPER:+1}0 ? 16777216 : 268435456)) >a.raw
before=$(sha a.raw)
interrupt()
{
	local signal=$1 status=0 pid
	shift
	mkfifo messages
	# bash has background processes ignore SIGINT, which imgtool respects
	env --default-signal=INT,HUP "$@" 2>messages >/dev/null &
	pid=$!
	# the shell tells of a hangup when it happens to see it
	{
		read -r _ <&4
		kill -s "$signal" "$pid"
		cat <&4 >rest
		wait "$pid" || status=$?
	} 4<messages 2>/dev/null
	rm messages
	echo "SIG$signal: exit $status: $(grep -v '^{' rest)"
	tail -n 2 rest | grep -o '"state": "[a-z]*"' | tail -n 1
	rm rest
}
for signal in INT TERM HUP; do
	interrupt $signal "${tool[@]}" convert --progress=json -c zstd:15 a.raw b.limg
	ls
done
interrupt INT "${tool[@]}" checksum --progress=json a.raw
cp --reflink=auto a.raw c.raw
interrupt TERM "${tool[@]}" compare --progress=json a.raw c.raw
[[ $(sha a.raw) == "$before" ]] || fail "the source changed"

# Waiting for input.
mkfifo input
"${tool[@]}" create small.limg 4M
env --default-signal=INT,HUP "${tool[@]}" write small.limg <input 2>err &
writer=$!
exec 3>input
printf abc >&3
wait_for 10 eval 'imgtool lock --json small.limg | grep -q "\"writes\": true"'
kill -INT $writer
status=0
wait $writer || status=$?
cat err
echo "exit $status"
exec 3>&-
sound small.limg

# Nobody reads: a signal ends it at once. What is written is not cut at the pipe's end, so that part of it is through.
mkfifo blocked
/usr/bin/python3 - many.raw <<'PY'
import sys
with open(sys.argv[1], 'wb') as f:
    for i in range(4096):
        f.seek(i << 13)
        f.write(b'x')
    f.truncate(4096 << 13)
PY
for signal in INT TERM; do
	for verb in "read a.raw" "map many.raw"; do
		# shellcheck disable=SC2217 # it holds the other end
		sleep 20 <blocked &
		sleeper=$!
		# shellcheck disable=SC2086 # words
		env --default-signal=INT "${tool[@]}" $verb >blocked 2>err &
		writer=$!
		sleep 0.5
		started=$SECONDS
		kill -s $signal $writer
		status=0
		{ wait $writer || status=$?; } 2>/dev/null
		((SECONDS - started < 10)) || fail "$verb went on until somebody read"
		echo "$verb, SIG$signal: exit $status"
		cat err
		kill $sleeper
		{ wait $sleeper || true; } 2>/dev/null
	done
done

# A loop of a shell ends with it. A terminal sends the signal to both.
env --default-signal=INT bash -c 'for i in 1 2 3; do "$@"; echo "went on with $i"; done' loop "${tool[@]}" convert -c zstd:15 a.raw b.limg >went 2>err &
loop=$!
wait_for 20 pgrep -P $loop >pids
sleep 0.3
pkill -INT -P $loop
kill -INT $loop
status=0
{ wait $loop || status=$?; } 2>err
cat went
echo "the shell: exit $status"

# A reader that goes away is an I/O error, not a crash.
status=0
{ imgtool read a.raw 2>err || echo "exit $?" >status; } | head -c 1000 | wc -c
cat status err
