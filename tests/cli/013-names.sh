# '@' in file names, and names that would act on a terminal.
run imgtool create -f raw ./a@b@ 1M
run imgtool create -f raw a@b 1M
ls
imgtool info a@b | head -n 1
imgtool info ./a@b@ | head -n 1
run imgtool info a@b@c
truncate -s 1M a
run imgtool info a@b
imgtool info a@b@ | head -n 1
imgtool info a | head -n 1
run imgtool info --snapshot b a
mkdir d@r
cp a d@r/plain.raw
imgtool info d@r/plain.raw | head -n 1
run imgtool convert a d@r/x@y
run imgtool convert ./a@b@ d@r/x@y@
ls d@r
run imgtool info @snap
run imgtool info d@r/@
run imgtool create -f raw @ 1M
cp a @file
imgtool info @file | head -n 1

evil=$'e\e[31m\x07vil\xff\xe2\x80\xaetxt\\'
truncate -s 512 "$evil"


imgtool info "$evil" | head -n 1
imgtool info --json "$evil" | grep filename
run imgtool info "no such $evil" 2>&1 | tail -n +2
run imgtool checksum "$evil" | tail -n 1

# However long the path, what went wrong stays in the message, and the file is named once.
told()
{
	local status=0
	imgtool "$@" >out 2>err || status=$?
	sed "s/$deep/DEEP/g; s/pid $writer/pid PID/" err
	echo "[exit $status]"
}
writer=
mkfifo input
for count in 180 230 250; do
	deep=$(printf 'd%.0s' $(seq $count))
	mkdir "$deep"
	imgtool create -q "$deep/a.limg" 1M
	"${tool[@]}" write "$deep/a.limg" <input &
	writer=$!
	exec 3>input
	wait_for 10 eval 'imgtool lock --json $deep/a.limg | grep -q "\"writes\": true"'
	told info "$deep/nope"
	told resize "$deep/a.limg" 2M
	exec 3>&-
	wait $writer
done
deeper=$(printf "$deep/%.0s" {1..3})
mkdir -p "$deeper"
told info "$deeper/nope"
imgtool create -q "$deeper/base.limg" 1M
imgtool create -q -b base.limg "$deeper/over.limg"
rm "$deeper/base.limg"
told compare "$deeper/over.limg" a
