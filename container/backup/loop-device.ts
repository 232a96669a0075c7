import { runTool } from "../run.js";

/** Loop devices: files that the kernel reads as disks. */

/** Of include/uapi/linux/loop.h: a read-only device goes on with another file of the same size. */
const LOOP_CHANGE_FD = 0x4c06;

/** Node has no ioctl(2). Debian and Ubuntu always have perl. */
const CHANGE_FILE = `
my ($device, $file) = @ARGV;
open(my $to, '<', $device) or die "$device: $!\\n";
open(my $from, '<', $file) or die "$file: $!\\n";
ioctl($to, ${LOOP_CHANGE_FD}, fileno($from)) or die "LOOP_CHANGE_FD: $!\\n";`;

/**
 * Has a read-only loop device read another file with the same content, whoever uses it.
 * @throws {ToolError} where that cannot be had; then it reads the file that it has
 */
export async function changeFile(device: string, file: string): Promise<void> {
  await runTool("perl", ["-e", CHANGE_FILE, device, file]);
}
