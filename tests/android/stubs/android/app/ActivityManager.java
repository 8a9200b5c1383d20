package android.app;

import java.util.List;

/** The calls of API 30 that the library makes; hides the class of API 23. */
public class ActivityManager {
    public static class MemoryInfo {
        public long availMem, totalMem, threshold;
        public boolean lowMemory;
    }

    public native void getMemoryInfo(MemoryInfo info);

    public native List<ApplicationExitInfo> getHistoricalProcessExitReasons(String packageName, int pid, int maxNum);
}
