package androidx.core.app;

import android.app.Notification;
import android.app.PendingIntent;
import android.content.Context;

public class NotificationCompat {
    public static class Builder {
        public Builder(Context context, String channel) {}

        public native Builder setSmallIcon(int icon);

        public native Builder setContentTitle(CharSequence title);

        public native Builder setContentText(CharSequence text);

        public native Builder setOngoing(boolean ongoing);

        public native Builder setOnlyAlertOnce(boolean once);

        public native Builder addAction(int icon, CharSequence title, PendingIntent intent);

        public native Builder setProgress(int max, int progress, boolean indeterminate);

        public native Notification build();
    }
}
