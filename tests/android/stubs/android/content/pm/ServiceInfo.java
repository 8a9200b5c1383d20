package android.content.pm;

/** The constant of API 34 that the library uses; hides the class of API 23. */
public class ServiceInfo {
    public static final int FOREGROUND_SERVICE_TYPE_SPECIAL_USE = 1 << 30;
}
