package dev.secateur

import android.app.ActivityManager
import android.app.ApplicationExitInfo
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration
import android.os.Build
import android.os.Handler
import android.os.Looper

/** What the system says about memory, now. */
internal fun memoryInfo(context: Context): ActivityManager.MemoryInfo {
    val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
    return ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
}

/** A budget that the system will let us have; lower after it has killed us for memory. */
fun suggestedMemoryBudget(context: Context): String {
    val info = memoryInfo(context)
    val bytes = memoryBudgetBytes(info.availMem, info.threshold, info.totalMem, lastKilledAtBytes(context))
    return bytes.toString()
}

/** How large this app was when the system last killed it for memory; null when it never did, or does not say. */
private fun lastKilledAtBytes(context: Context): Long? {
    if (Build.VERSION.SDK_INT < 30) return null
    val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
    return manager.getHistoricalProcessExitReasons(context.packageName, 0, MAX_EXITS)
        .filter { it.reason == ApplicationExitInfo.REASON_LOW_MEMORY && it.rss > 0 }
        .minOfOrNull { it.rss * 1024 }
}

/**
 * Watches memory as long as a service runs. Since Android 14 the system no longer sends `TRIM_MEMORY_RUNNING_*`, so it
 * is asked every few seconds; what it still sends is an occasion to ask at once. `TRIM_MEMORY_UI_HIDDEN` is no
 * pressure: it comes with every screen lock.
 */
internal class MemoryWatch(
    private val context: Context,
    private val onChange: (MemoryPressure) -> Unit,
) : ComponentCallbacks2 {
    private val levels = MemoryLevels()
    private val handler = Handler(Looper.getMainLooper())
    private val tick = object : Runnable {
        override fun run() {
            look()
            handler.postDelayed(this, INTERVAL_MS)
        }
    }

    fun start() {
        context.registerComponentCallbacks(this)
        handler.post(tick)
    }

    fun stop() {
        handler.removeCallbacks(tick)
        context.unregisterComponentCallbacks(this)
    }

    private fun look() {
        val info = memoryInfo(context)
        levels.read(info.availMem, info.threshold, info.lowMemory)?.let(onChange)
    }

    override fun onTrimMemory(level: Int) {
        if (level != ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN) look()
    }

    @Deprecated("Called by systems that know nothing better")
    override fun onLowMemory() = onChange(MemoryPressure.CRITICAL)

    override fun onConfigurationChanged(newConfig: Configuration) = Unit

    private companion object {
        const val INTERVAL_MS = 2_000L
    }
}

private const val MAX_EXITS = 16
