import { expect, test } from "vitest";
import { changeFile } from "../../../container/backup/loop-device.js";

test("what is no loop device is refused with the system's reason", async () => {
  await expect(changeFile("/dev/null", "/dev/null")).rejects.toMatchObject({
    name: "ToolError",
    message: expect.stringContaining("LOOP_CHANGE_FD: Inappropriate ioctl for device"),
  });
});
