package android.app;

/** API 30. */
public final class ApplicationExitInfo {
    public static final int REASON_LOW_MEMORY = 3;

    public native int getReason();

    public native long getRss();
}
