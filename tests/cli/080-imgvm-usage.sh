# What imgvm says of itself, and of command lines that make no sense. Nothing here needs KVM.
IMGVM=${IMGVM:-$(dirname "$IMGTOOL")/imgvm}
[[ -x $IMGVM ]] || skip "imgvm was not built"
export XDG_RUNTIME_DIR=$PWD
imgvm()
{
	"$IMGVM" "$@"
}

run imgvm
run imgvm help
run imgvm run -h
run imgvm snapshot -h
run imgvm nothing
run imgvm run
run imgvm run --kernel k --bios b image
run imgvm run --disk
run imgvm status
run imgvm snapshot image
run imgvm status image@snapshot
run imgvm status --pid 0 image

imgtool create image.limg 1M
run imgvm status image.limg
run imgvm quit nowhere.limg

# Every verb has an example, and its options are in the manual and in the completion.
imgvm --generate-man | tr -d '\134' >manual
imgvm --generate-completion >completion
bash -n completion
for verb in run status pause resume snapshot revert delete rename powerdown reset quit; do
	imgvm $verb -h >help
	grep -q '^Example:' help || fail "$verb has no example"
	grep -q "^\.SS $verb$" manual || fail "$verb is not in the manual"
	grep -q "\"$verb\")" completion || fail "$verb is not completed"
	grep -o -- '^ *\(-., \)\?--[a-z-]*' help | grep -o -- '--[a-z-]*' >options
	while read -r option; do
		grep -q -e "$option " completion || fail "$option of $verb is not completed"
		grep -q -e "$option" manual || fail "$option of $verb is not in the manual"
	done <options
done
