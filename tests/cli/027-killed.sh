# commit, rebase, flatten and convert killed half way are run again and lose nothing.
# Under a wrapper that makes everything slow less data will do, and fewer kills, later.
tenths=${IMGTOOL_WRAPPER:+1}
tenths=${tenths:-5}
moments="5 12 20 35 60 90"
[[ -z ${IMGTOOL_WRAPPER:-} ]] || moments=1500
truncate -s $((tenths * 9600))K base.raw
random_bytes 40 $((tenths * 9000000)) | dd of=base.raw bs=64K conv=notrunc status=none
imgtool convert base.raw golden.limg
imgtool snapshot create golden.limg@v1
random_bytes 41 $((tenths * 2000000)) | imgtool write golden.limg --offset 3M
imgtool snapshot create golden.limg@v2
imgtool create -b golden.limg@v1 gold-overlay.limg
random_bytes 42 $((tenths * 6000000)) | imgtool write gold-overlay.limg --offset $((tenths * 2000123))
want=$(content gold-overlay.limg)

# kill_at MILLISECONDS COMMAND...: prints whether it was killed.
kill_at()
{
	local status=0 pid ms=$1
	shift
	"$@" 2>/dev/null &
	pid=$!
	sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
	kill -KILL "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || status=$?
	case $status in
	0) finished=$((finished + 1)) ;;
	137) killed=$((killed + 1)) ;;
	*) fail "$* ended with $status" ;;
	esac
}
finished=0 killed=0
for ms in $moments; do
	for verb in commit rebase flatten; do
		cp golden.limg base.limg
		imgtool revert base.limg@v1
		cp gold-overlay.limg o.limg
		imgtool rebase --unsafe -b base.limg@v1 o.limg
		arguments=()
		[[ $verb == rebase ]] && arguments=(-b base.limg@v2)
		kill_at "$ms" "${tool[@]}" "$verb" "${arguments[@]}" o.limg
		expect 0 imgtool check -q base.limg
		expect 0 imgtool check -q o.limg
		same "$verb killed after $ms ms" "$(imgtool checksum o.limg | cut -d' ' -f1)" "$want"
		expect 0 imgtool "$verb" "${arguments[@]}" o.limg
		[[ $verb != commit ]] || same parent "$(imgtool checksum base.limg | cut -d' ' -f1)" "$want"
		same "$verb" "$(imgtool checksum o.limg | cut -d' ' -f1)" "$want"
		sound o.limg base.limg
	done
	kill_at "$ms" "${tool[@]}" convert -c zstd base.raw copy.limg
	if [[ -e copy.limg ]]; then
		expect 0 imgtool compare copy.limg base.raw
		rm copy.limg
	fi
done
((killed >= 2)) || fail "killed $killed, finished $finished: nothing was tested"
echo "some were killed"
