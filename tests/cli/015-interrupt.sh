# An interruption ends a verb with exit 3, without a destination, without litter, with the source untouched.
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
	{
		read -r _ <&4
		kill -s "$signal" "$pid"
		cat <&4 >rest
	} 4<messages
	wait "$pid" || status=$?
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

# A reader that goes away is an I/O error, not a crash.
status=0
{ imgtool read a.raw 2>err || echo "exit $?" >status; } | head -c 1000 | wc -c
cat status err
