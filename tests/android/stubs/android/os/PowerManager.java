package android.os;

/** The calls of API 29 that the library makes; hides the class of API 23. */
public final class PowerManager {
    public interface OnThermalStatusChangedListener {
        void onThermalStatusChanged(int status);
    }

    public native void addThermalStatusListener(OnThermalStatusChangedListener listener);

    public native void removeThermalStatusListener(OnThermalStatusChangedListener listener);
}
