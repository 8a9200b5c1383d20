package dev.secateur

import android.app.Notification
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Binder
import android.os.IBinder
import androidx.core.app.NotificationChannelCompat
import androidx.core.app.NotificationCompat
import androidx.core.app.NotificationManagerCompat
import androidx.core.app.ServiceCompat
import androidx.core.content.ContextCompat
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Deferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.async
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch

/**
 * Keeps one [Secateur] alive as a foreground service with a notification that shows what it does.
 *
 * Start it with [start] while the app is visible, bind to it, and take port and token from the [Local] binder: they
 * never touch a file or an intent. It is not exported, so only this app's own processes can bind.
 */
class SecateurService : Service() {
    private val scope = CoroutineScope(SupervisorJob() + Dispatchers.IO)
    private lateinit var memory: MemoryWatch
    private lateinit var heat: ThermalWatch
    private var running: Deferred<Started>? = null

    private class Started(val secateur: Secateur, val endpoint: Endpoint)

    /** The way in for the app. */
    inner class Local internal constructor() : Binder() {
        /** Port and token, once the service has started. @throws SecateurException when it could not. */
        suspend fun endpoint(): Endpoint = started().endpoint

        /** The service itself, for calls without HTTP. */
        suspend fun secateur(): Secateur = started().secateur

        private suspend fun started(): Started =
            checkNotNull(running) { "start the service with SecateurService.start first" }.await()
    }

    override fun onCreate() {
        super.onCreate()
        memory = MemoryWatch(this) { level -> hint { memoryPressure(level) } }
        heat = ThermalWatch(this) { state -> hint { thermal(state) } }
    }

    override fun onBind(intent: Intent?): IBinder = Local()

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        if (intent?.action == ACTION_STOP) {
            stopSelf()
            return START_NOT_STICKY
        }
        // The system wants the notification within five seconds; the model takes longer.
        ServiceCompat.startForeground(
            this, NOTIFICATION_ID, notification(getString(R.string.secateur_starting), null), FOREGROUND_TYPE,
        )
        if (running == null) {
            running = scope.async {
                // The service may end while it starts: then nobody else would close what comes of it.
                launchService(intent?.getStringExtra(EXTRA_MODEL)).also { if (!isActive) it.secateur.close() }
            }
            memory.start()
            heat.start()
            scope.launch { followStatus() }
        }
        // After a kill for want of memory the app decides, with a lower budget.
        return START_NOT_STICKY
    }

    private fun launchService(model: String?): Started {
        val config = SecateurConfig(
            stateDir = noBackupFilesDir.resolve("secateur").path,
            model = model,
            memoryBudget = suggestedMemoryBudget(this),
        )
        val secateur = Secateur(config)
        return try {
            Started(secateur, secateur.start())
        } catch (error: SecateurException) {
            secateur.close()
            throw error
        }
    }

    private fun hint(call: Secateur.() -> Unit) {
        scope.launch {
            val started = runCatching { running?.await() }.getOrNull() ?: return@launch
            runCatching { started.secateur.call() }
        }
    }

    /** Shows the state in the notification until the service ends. */
    private suspend fun followStatus() {
        val started = try {
            running?.await() ?: return
        } catch (error: SecateurException) {
            show(getString(R.string.secateur_failed, error.message), null)
            return
        }
        var shown: String? = null
        while (scope.isActive) {
            val status = runCatching { started.secateur.status() }.getOrNull() ?: return
            val percent = if (status.state == "pruning") percentDone(status) else null
            val text = when (status.state) {
                "ready" -> getString(R.string.secateur_ready)
                "released" -> getString(R.string.secateur_released)
                "pruning" -> getString(R.string.secateur_pruning, percent ?: 0)
                "failed" -> getString(R.string.secateur_failed, failure(status))
                else -> getString(R.string.secateur_starting)
            }
            if (text != shown) show(text, percent)
            shown = text
            delay(STATUS_INTERVAL_MS)
        }
    }

    private fun readiness(status: Status): Map<*, *>? =
        (status.raw["status"] as? Map<*, *>)?.get("readiness") as? Map<*, *>

    private fun failure(status: Status): String = readiness(status)?.get("message") as? String ?: "?"

    private fun percentDone(status: Status): Int? {
        val progress = readiness(status)?.get("progress") as? Map<*, *>
        return (progress?.get("done") as? Number)?.let { (100 * it.toDouble()).toInt() }
    }

    private fun show(text: String, percent: Int?) {
        val manager = NotificationManagerCompat.from(this)
        // Without the permission (Android 13 and later) the service runs all the same.
        if (manager.areNotificationsEnabled()) {
            runCatching { manager.notify(NOTIFICATION_ID, notification(text, percent)) }
        }
    }

    private fun notification(text: String, percent: Int?): Notification {
        val channel = NotificationChannelCompat.Builder(CHANNEL, NotificationManagerCompat.IMPORTANCE_LOW)
            .setName(getString(R.string.secateur_channel))
            .build()
        NotificationManagerCompat.from(this).createNotificationChannel(channel)
        val stop = Intent(this, SecateurService::class.java).setAction(ACTION_STOP)
        val stopLater = PendingIntent.getService(this, 0, stop, PENDING_FLAGS)
        val builder = NotificationCompat.Builder(this, CHANNEL)
            .setSmallIcon(android.R.drawable.stat_notify_chat)
            .setContentTitle(getString(R.string.secateur_title))
            .setContentText(text)
            .setOngoing(true)
            .setOnlyAlertOnce(true)
            .addAction(0, getString(R.string.secateur_stop), stopLater)
        if (percent != null) builder.setProgress(100, percent, false)
        return builder.build()
    }

    override fun onDestroy() {
        memory.stop()
        heat.stop()
        val running = running
        scope.cancel()
        // Stopping waits for threads; the main thread must not.
        @OptIn(kotlinx.coroutines.ExperimentalCoroutinesApi::class)
        running?.invokeOnCompletion { error ->
            if (error == null) Thread { running.getCompleted().secateur.close() }.start()
        }
        super.onDestroy()
    }

    companion object {
        private const val CHANNEL = "secateur"
        private const val NOTIFICATION_ID = 0x5ec0
        private const val STATUS_INTERVAL_MS = 1_000L
        private const val ACTION_STOP = "dev.secateur.STOP"
        private const val EXTRA_MODEL = "dev.secateur.MODEL"
        // FLAG_IMMUTABLE: an app must say so since Android 12.
        private const val PENDING_FLAGS = 0x04000000
        private const val FOREGROUND_TYPE = ServiceInfo.FOREGROUND_SERVICE_TYPE_SPECIAL_USE

        /** Starts the service with a model file; the app must be visible. */
        fun start(context: Context, model: String?) {
            val intent = Intent(context, SecateurService::class.java).putExtra(EXTRA_MODEL, model)
            ContextCompat.startForegroundService(context, intent)
        }

        /** Ends the service. */
        fun stop(context: Context) {
            context.stopService(Intent(context, SecateurService::class.java))
        }
    }
}
