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
